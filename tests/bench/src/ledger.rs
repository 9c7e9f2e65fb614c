//! Fills a system's ledger with events, deliveries and attempts by SQL (`ledger.sql`, day by day): a system that has
//! run for long. Needs psql.

use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Id of the n-th endpoint of a ledger.
pub fn endpoint(n: u64) -> String {
    format!("00000000-0000-7000-8000-{n:012}")
}

/// Runs SQL: `arguments` are those of psql.
pub fn psql(url: &str, arguments: &[String]) -> anyhow::Result<String> {
    let done = Command::new("psql")
        .args(["-XqAt", "-v", "ON_ERROR_STOP=1"])
        .args(arguments)
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .context("psql can't be started")?;
    if !done.status.success() {
        bail!("psql {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

/// Runs one statement, or several.
pub fn sql(url: &str, statement: &str) -> anyhow::Result<String> {
    psql(url, &["-c".to_owned(), statement.to_owned()])
}

/// `events` over the last `days`, for `endpoints` paused endpoints of the default tenant and one of another.
pub fn fill(url: &str, events: u64, days: u64, endpoints: u64) -> anyhow::Result<()> {
    sql(
        url,
        &format!(
            "insert into tenants (id) values ('bench_other');
            insert into endpoints (id, tenant, name, url, max_retries, retry_backoff_base, retry_max_delay_seconds, timeout_seconds,
                circuit_failure_threshold, circuit_window_seconds, circuit_recovery_seconds, secret, version, paused)
            select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, case n when 1000 then 'bench_other' else 'default' end,
                'bench ' || n, 'https://example.com/' || n, 5, 2, 3600, 30, 5, 60, 300, 'whsec_0123456789abcdef', 1, true
            from (select generate_series(0, {endpoints}) union all select 1000) x (n)"
        ),
    )?;
    let file = std::env::temp_dir().join(format!("relay-bench-ledger-{}.sql", std::process::id()));
    std::fs::write(&file, include_str!("ledger.sql"))?;
    let per_day = events / days.max(1);
    let filled = (1..=days).try_for_each(|day| {
        let of = |name: &str, value: u64| ["-v".to_owned(), format!("{name}={value}")];
        let arguments = [&of("day", day)[..], &of("n", per_day)[..], &["-f".to_owned(), file.display().to_string()]];
        psql(url, &arguments.concat()).map(|_| ())
    });
    std::fs::remove_file(&file)?;
    filled?;
    sql(url, "vacuum analyze endpoints, events, closed_deliveries, open_deliveries, attempts, dead_letters").map(|_| ())
}
