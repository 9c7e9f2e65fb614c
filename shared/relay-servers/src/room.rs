//! Has a disk room? Only asked: a trial write would take the last of it from a PostgreSQL beside it.

use std::io;
use std::path::Path;

use crate::error::ServersError;

/// Room for a start and a moment's work.
const LEAST_BYTES: u64 = 16 << 20;

/// Whether the file system of the directory has that much for everybody.
pub(crate) fn check(dir: &Path) -> Result<(), ServersError> {
    let found = rustix::fs::statvfs(dir).map_err(|errno| ServersError::io("look at", dir)(errno.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free < LEAST_BYTES {
        return Err(ServersError::io("write", dir)(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("{} MiB are free, {} are needed", free >> 20, LEAST_BYTES >> 20),
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_or_says_why_not() {
        check(&std::env::temp_dir()).unwrap();
        // Nothing fits on this one.
        let error = check(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.contains("/proc") && error.contains("0 MiB are free, 16 are needed"), "{error}");
        assert!(check(Path::new("/no-such-directory")).is_err());
    }
}
