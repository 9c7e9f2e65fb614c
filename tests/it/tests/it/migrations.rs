//! `webhook-relay migrate` alone.

use std::process::{Command, Stdio};

use it::World;
use it::process::binary;

use crate::servers::{database, sql_at};

/// As in a roll-out where every pod migrates first: they take turns, and all of them succeed.
#[tokio::test]
async fn any_number_may_migrate_at_once() -> anyhow::Result<()> {
    let w = World::servers().await?;
    sql_at(&database(&w, "postgres")?, "create database fresh")?;
    let url = database(&w, "fresh")?;
    let migrate = || {
        let mut command = Command::new(binary("webhook-relay")?);
        command.arg("migrate").env("DATABASE_URL", &url).stdout(Stdio::piped()).stderr(Stdio::piped());
        anyhow::Ok(command.spawn()?)
    };
    let all = (0..4).map(|_| migrate()).collect::<anyhow::Result<Vec<_>>>()?;
    for one in all {
        let ended = one.wait_with_output()?;
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let files = std::fs::read_dir(it::tools::repository().join("migrations"))?;
    let files = files.filter_map(Result::ok).filter(|f| f.path().extension().is_some_and(|e| e == "sql")).count();
    let applied = "select count(*), count(distinct version), bool_and(success) from _sqlx_migrations";
    assert_eq!(sql_at(&url, applied)?, format!("{files}|{files}|t"));
    let again = migrate()?.wait_with_output()?;
    assert_eq!(String::from_utf8_lossy(&again.stdout).trim(), "the schema was up to date");
    Ok(())
}
