//! Points in the code at which a test stops a process, holds it up, or hides an outcome from it: between two steps whose
//! order the protocol lives by. Each row of the table in docs/chaos.md that is a crash has its point.
//!
//! Builds with debug assertions only; in others [`pass`] and [`fails`] do nothing, and no flag arms a point.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// Ingest has a bundle and hasn't published it.
    IngestPublish,
    /// JetStream has stored a bundle; nobody was told.
    IngestPublished,
    /// A batch is matched with endpoints; its statement hasn't run.
    DispatchMatched,
    /// Events and open deliveries are committed; no job is out.
    DispatchCommitted,
    /// The jobs are out; EVENTS isn't acknowledged.
    DispatchPublished,
    /// Due rows are claimed; their jobs aren't out.
    ScheduleClaimed,
    /// A job is next; it was neither checked nor sent.
    DeliverNext,
    /// A check has taken the row, where one was needed; nothing is sent.
    DeliverChecked,
    /// The endpoint has answered; nothing is on record.
    DeliverAnswered,
    /// Results are committed; JOBS isn't acknowledged.
    RecordCommitted,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::IngestPublish,
        Self::IngestPublished,
        Self::DispatchMatched,
        Self::DispatchCommitted,
        Self::DispatchPublished,
        Self::ScheduleClaimed,
        Self::DeliverNext,
        Self::DeliverChecked,
        Self::DeliverAnswered,
        Self::RecordCommitted,
    ];
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IngestPublish => "ingest.publish",
            Self::IngestPublished => "ingest.published",
            Self::DispatchMatched => "dispatch.matched",
            Self::DispatchCommitted => "dispatch.committed",
            Self::DispatchPublished => "dispatch.published",
            Self::ScheduleClaimed => "schedule.claimed",
            Self::DeliverNext => "deliver.next",
            Self::DeliverChecked => "deliver.checked",
            Self::DeliverAnswered => "deliver.answered",
            Self::RecordCommitted => "record.committed",
        })
    }
}

/// What happens there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    /// The process ends at once, as by `kill -9`.
    Kill,
    /// The task that came there stands still for so long; the rest of the process goes on.
    Stall(Duration),
    /// What was just done counts as unknown.
    Fail,
}

/// One point, the how manieth time it is reached, and what happens then: once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Trap {
    point: Point,
    nth: u32,
    act: Act,
}

/// What a test arms: `point[@nth][:kill|:fail|:stall=seconds]`, several separated by commas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Traps(Vec<Trap>);

impl FromStr for Traps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(trap).collect::<Result<_, _>>().map(Self)
    }
}

fn trap(text: &str) -> Result<Trap, String> {
    let names = || Point::ALL.map(|p| p.to_string()).join(", ");
    let (place, act) = text.split_once(':').unwrap_or((text, "kill"));
    let (name, nth) = place.split_once('@').unwrap_or((place, "1"));
    let found = Point::ALL.into_iter().find(|p| p.to_string() == name);
    let point = found.ok_or_else(|| format!("no point is called {name}; there are {}", names()))?;
    let nth = nth.parse().map_err(|e| format!("{nth}: {e}"))?;
    let act = match act.split_once('=') {
        None if act == "kill" => Act::Kill,
        None if act == "fail" => Act::Fail,
        Some(("stall", seconds)) => {
            Act::Stall(Duration::from_secs(seconds.parse().map_err(|e| format!("{seconds}: {e}"))?))
        }
        _ => return Err(format!("{act}: must be kill, fail or stall=<seconds>")),
    };
    Ok(Trap { point, nth, act })
}

static ARMED: OnceLock<Traps> = OnceLock::new();
static REACHED: [AtomicU32; Point::ALL.len()] = [const { AtomicU32::new(0) }; Point::ALL.len()];

/// Arms points for the rest of the process.
pub fn arm(traps: Traps) {
    if cfg!(debug_assertions) {
        let _ = ARMED.set(traps);
    }
}

/// The process comes by.
pub async fn pass(point: Point) {
    reach(point).await;
}

/// The process comes by; `true`: it has to take for unknown what it just did.
pub async fn fails(point: Point) -> bool {
    reach(point).await == Some(Act::Fail)
}

async fn reach(point: Point) -> Option<Act> {
    if !cfg!(debug_assertions) {
        return None;
    }
    let Traps(traps) = ARMED.get()?;
    let time = REACHED[point as usize].fetch_add(1, Ordering::Relaxed) + 1;
    let act = traps.iter().find(|t| t.point == point && t.nth == time)?.act;
    tracing::error!(%point, ?act, "a test stops this process here");
    match act {
        Act::Kill => std::process::abort(),
        Act::Stall(time) => tokio::time::sleep(time).await,
        Act::Fail => {}
    }
    Some(act)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traps_are_read() {
        let trap = |point, nth, act| Trap { point, nth, act };
        let read = |text: &str| text.parse::<Traps>().map(|Traps(traps)| traps);
        for point in Point::ALL {
            assert_eq!(read(&point.to_string()), Ok(vec![trap(point, 1, Act::Kill)]));
        }
        let two = vec![
            trap(Point::DispatchCommitted, 1, Act::Fail),
            trap(Point::DispatchCommitted, 2, Act::Stall(Duration::from_secs(36))),
        ];
        assert_eq!(read("dispatch.committed:fail,dispatch.committed@2:stall=36"), Ok(two));
        for wrong in ["", "dispatch", "dispatch.committed@x", "dispatch.committed:nap", "dispatch.committed:stall=x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_point_strikes_once_and_the_others_never() {
        arm("record.committed@2:fail,deliver.next:stall=5".parse().unwrap());
        let begun = tokio::time::Instant::now();
        assert!(!fails(Point::RecordCommitted).await);
        assert!(fails(Point::RecordCommitted).await);
        assert!(!fails(Point::RecordCommitted).await);
        assert!(!fails(Point::DispatchCommitted).await);
        assert!(begun.elapsed().is_zero());
        pass(Point::DeliverNext).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
    }
}
