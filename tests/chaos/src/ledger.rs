//! The book of what was accepted: one line an event, on disk before it counts. What a producer was not told about is in
//! no line, and the system owes nobody anything for it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context as _;

/// An accepted event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// Its number, which its payload carries.
    pub number: u64,
    /// Its id, where the producer was told.
    pub id: Option<String>,
    /// When its producer was told, counted from the start of the run; kept in whole milliseconds.
    pub at: Duration,
}

/// The open book. Its clones write the same file.
#[derive(Clone)]
pub struct Ledger {
    path: PathBuf,
    lines: mpsc::Sender<String>,
    sent: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
}

impl Ledger {
    /// A new book. A thread of its own writes it, many lines with one `fdatasync`.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let mut file = std::fs::File::create_new(path).with_context(|| format!("making {}", path.display()))?;
        let (lines, queue) = mpsc::channel::<String>();
        let written = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&written);
        std::thread::Builder::new().name("ledger".to_owned()).spawn(move || {
            while let Ok(first) = queue.recv() {
                let batch: Vec<String> = std::iter::once(first).chain(queue.try_iter()).collect();
                let done = file.write_all(batch.concat().as_bytes()).and_then(|()| file.sync_data());
                if let Err(error) = done {
                    eprintln!("the ledger can't be written: {error}");
                    return;
                }
                count.fetch_add(batch.len() as u64, Ordering::SeqCst);
            }
        })?;
        Ok(Self { path: path.to_owned(), lines, sent: Arc::default(), written })
    }

    /// Writes down an event that was accepted.
    pub fn accepted(&self, event: &Accepted) -> anyhow::Result<()> {
        let line = format!("{} {} {}\n", event.number, event.id.as_deref().unwrap_or("-"), event.at.as_millis());
        self.sent.fetch_add(1, Ordering::SeqCst);
        self.lines.send(line).context("the ledger's thread has ended")
    }

    /// How many were accepted so far.
    pub fn count(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Reads the book back from disk, when all of it is there.
    pub async fn read(&self) -> anyhow::Result<Vec<Accepted>> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while self.written.load(Ordering::SeqCst) < self.count() {
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "the ledger is not on disk");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let text = std::fs::read_to_string(&self.path).with_context(|| format!("reading {}", self.path.display()))?;
        text.lines().map(parse).collect()
    }
}

fn parse(line: &str) -> anyhow::Result<Accepted> {
    let words: Vec<&str> = line.split(' ').collect();
    let [number, id, at] = words[..] else { anyhow::bail!("not a line of the ledger: {line}") };
    let id = Some(id.to_owned()).filter(|id| id != "-");
    Ok(Accepted { number: number.parse()?, id, at: Duration::from_millis(at.parse()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_back() -> anyhow::Result<()> {
        let path = std::env::temp_dir().join(format!("relay-chaos-ledger-{}", std::process::id()));
        let ledger = Ledger::create(&path)?;
        let events = [(7, Some("a-b".to_owned()), 5), (8, None, 6)];
        let events = events.map(|(number, id, at)| Accepted { number, id, at: Duration::from_millis(at) });
        for event in &events {
            ledger.accepted(event)?;
        }
        assert_eq!(ledger.read().await?, events);
        std::fs::remove_file(&path)?;
        Ok(())
    }
}
