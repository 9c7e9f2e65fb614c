//! Whether the pod may take in more: not while results wait too long or too many of them wait to be recorded. A
//! pod that can't record goes on with what it has and leaves the rest to others.

use tokio::sync::watch;

/// The valve between recorder and intake. Cheap to clone.
#[derive(Clone)]
pub struct Flow {
    open: watch::Sender<bool>,
}

impl Default for Flow {
    fn default() -> Self {
        Self { open: watch::Sender::new(true) }
    }
}

impl Flow {
    /// Opens or closes the valve.
    pub fn set(&self, open: bool) {
        let changed = self.open.send_if_modified(|state| std::mem::replace(state, open) != open);
        if changed && open {
            tracing::info!("results are recorded again: pulling jobs");
        } else if changed {
            tracing::warn!("results can't be recorded in time: pulling no jobs until they are");
        }
    }

    /// Whether the valve is open.
    #[cfg(test)]
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Waits until the valve is open.
    pub async fn opened(&self) {
        // The sender lives in `self`, so waiting can't fail.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}
