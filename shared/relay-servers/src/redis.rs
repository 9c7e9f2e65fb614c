//! The private Redis: a shared opinion on who is healthy, so nothing of it is kept on disk.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::ServerKind;
use crate::credentials::write_private;
use crate::error::ServersError;
use crate::process::{Recipe, Signal};
use crate::tools;

/// Most memory that it may take; the oldest opinions go first.
const MEMORY_BYTES_MAX: &str = "256mb";

/// The directory of its configuration.
pub(crate) fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join("redis")
}

/// Writes the configuration and says how to start the server.
pub(crate) fn prepare(
    data_dir: &Path,
    tools_dirs: &[PathBuf],
    port: u16,
    password: &str,
) -> Result<Recipe, ServersError> {
    let dir = dir(data_dir);
    fs::create_dir_all(&dir).map_err(ServersError::io("make", &dir))?;
    let program = program(&dir, tools_dirs)?;
    let conf = dir.join("redis.conf");
    write_private(&conf, configuration(port, password, &dir).as_bytes())?;
    Ok(Recipe {
        kind: ServerKind::Redis,
        program,
        args: vec![conf.to_string_lossy().into_owned()],
        env: Vec::new(),
        user: None,
        end: Signal::Terminate,
        log: data_dir.join("logs/redis.log"),
        pid_file: data_dir.join("run/redis.pid"),
    })
}

/// `set-proc-title no` keeps our path in the command line, by which a left-over server is known.
fn configuration(port: u16, password: &str, dir: &Path) -> String {
    format!(
        "bind 127.0.0.1\nport {port}\nrequirepass {password}\ndaemonize no\nset-proc-title no\nappendonly no\nsave \"\"\n\
         maxmemory {MEMORY_BYTES_MAX}\nmaxmemory-policy allkeys-lru\ndir \"{}\"\n",
        dir.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"")
    )
}

/// `redis-server`, or a link of that name on `redis-check-rdb`: they are one program that looks at its own name, and
/// Debian's package with the latter (`redis-tools`) starts no service.
fn program(dir: &Path, tools_dirs: &[PathBuf]) -> Result<PathBuf, ServersError> {
    if let Some(found) = tools::find("redis-server", tools_dirs) {
        return Ok(found);
    }
    let target = tools::find("redis-check-rdb", tools_dirs).ok_or_else(|| ServersError::MissingProgram {
        program: "redis-server",
        searched: tools::searched(tools_dirs, "as redis-check-rdb too"),
        hint: "Install Debian's package `redis-tools` (`make up` does; it has the server without the service), or give --redis-url",
    })?;
    let link = dir.join("redis-server");
    let _absent = fs::remove_file(&link);
    symlink(&target, &link).map_err(ServersError::io("link", &link))?;
    Ok(link)
}
