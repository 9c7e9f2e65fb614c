//! Generated passwords of the private servers, kept in one file that only its owner can read and used again at every start.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::ServersError;
use crate::nats;

/// The file's name in the data directory.
pub(crate) const FILE: &str = "credentials.json";
/// Random bytes in a password.
const PASSWORD_BYTES: usize = 24;

/// All passwords of one data directory. Without `Debug`, so that none gets into a log.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub(crate) postgres: String,
    pub(crate) redis: String,
    /// Password by NATS user.
    pub(crate) nats: BTreeMap<String, String>,
}

impl Credentials {
    /// Reads the file, or makes it. The flag says that it is new.
    pub(crate) fn load_or_create(data_dir: &Path) -> Result<(Self, bool), ServersError> {
        let path = data_dir.join(FILE);
        match fs::read(&path) {
            Ok(text) => {
                let mut known: Self = serde_json::from_slice(&text)
                    .map_err(|why| ServersError::Credentials { path: path.clone(), why: why.to_string() })?;
                // A newer version may have users that an older one did not know.
                let before = known.nats.len();
                for user in nats::USERS {
                    if !known.nats.contains_key(user) {
                        known.nats.insert(user.to_owned(), password()?);
                    }
                }
                if known.nats.len() != before {
                    known.write(&path)?;
                }
                Ok((known, false))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mut nats = BTreeMap::new();
                for user in nats::USERS {
                    nats.insert(user.to_owned(), password()?);
                }
                let fresh = Self { postgres: password()?, redis: password()?, nats };
                fresh.write(&path)?;
                Ok((fresh, true))
            }
            Err(error) => Err(ServersError::io("read", &path)(error)),
        }
    }

    fn write(&self, path: &Path) -> Result<(), ServersError> {
        let text = serde_json::to_vec_pretty(self).expect("passwords are plain strings");
        write_private(path, &text)
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), ServersError> {
    let next = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&next)
        .map_err(ServersError::io("write", &next))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(ServersError::io("write", &next))?;
    fs::rename(&next, path).map_err(ServersError::io("write", path))
}

/// A password from the kernel's random source. It starts with a letter: NATS would read digits alone as a number.
pub(crate) fn password() -> Result<String, ServersError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; PASSWORD_BYTES];
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(ServersError::io("read", path))?;
    Ok(format!("p{}", hex::encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn made_once_private_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (first, new) = Credentials::load_or_create(dir.path()).unwrap();
        assert!(new);
        let (second, new) = Credentials::load_or_create(dir.path()).unwrap();
        assert!(!new);
        assert_eq!(first.postgres, second.postgres);
        assert_eq!(first.nats, second.nats);
        assert_ne!(first.postgres, first.redis);
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        let error = Credentials::load_or_create(dir.path()).err().unwrap();
        assert!(error.to_string().contains(FILE), "{error}");
    }

    #[test]
    fn a_user_of_a_newer_version_gets_a_password() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), r#"{"postgres":"pa","redis":"pb","nats":{"ingest":"pc"}}"#).unwrap();
        let (known, new) = Credentials::load_or_create(dir.path()).unwrap();
        assert!(!new);
        assert_eq!(known.nats["ingest"], "pc");
        assert_eq!(known.nats.len(), nats::USERS.len());
        let (again, _) = Credentials::load_or_create(dir.path()).unwrap();
        assert_eq!(known.nats, again.nats);
    }
}
