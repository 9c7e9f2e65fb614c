//! The table of crash points in docs/chaos.md names a test for each row: those that it names must exist.

use std::collections::BTreeSet;

use it::tools::repository;

/// The rows of the design's table; the others are no crashes (see the table's own words).
fn rows() -> BTreeSet<String> {
    let numbered = (1..=36).filter(|n| ![5, 31, 32].contains(n)).map(|n: u32| n.to_string());
    numbered.chain(["14a", "21a", "21b", "21c", "21d", "21e", "21f"].map(str::to_owned)).collect()
}

#[test]
fn each_row_names_tests_that_exist() -> anyhow::Result<()> {
    let text = std::fs::read_to_string(repository().join("docs/chaos.md"))?;
    let (_, table) = text.split_once("## Crash points").expect("docs/chaos.md has the table");
    let table = table.split("\n## ").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for line in table.lines().filter(|l| l.starts_with("| ")).skip(1) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [row, _, _, tests] = cells[..] else { panic!("not a row: {line}") };
        assert!(found.insert(row.to_owned()), "row {row} is there twice");
        // In backticks: a file, then the tests in it.
        let words: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        let (mut source, mut named) = (String::new(), 0);
        for word in words {
            if word.ends_with(".rs") {
                source = std::fs::read_to_string(repository().join(word))?;
                continue;
            }
            assert!(is_test(&source, word), "row {row}: {word} is no test there");
            named += 1;
        }
        assert!(named > 0, "row {row} names no test");
    }
    assert_eq!(found, rows());
    Ok(())
}

/// A function with this name, right behind a test's attribute.
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let begin = [format!("fn {name}("), format!("async fn {name}(")];
    (1..lines.len()).any(|i| {
        begin.iter().any(|b| lines[i].starts_with(b)) && lines[i - 1].starts_with("#[") && lines[i - 1].contains("test")
    })
}
