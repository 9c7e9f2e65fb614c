//! Reading the directory through to Postgres before a refusal: at most one refresh per tenant runs at a time,
//! and a caller is served by one that began after it asked (an earlier one may have read too early).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relay_core::ids::TenantId;
use relay_store::{Directory, StoreError};
use tokio::time::timeout;

/// How long a request waits for Postgres before it is decided from what is known.
const READ_THROUGH: Duration = Duration::from_millis(250);

/// Single-flight refreshes of the directory.
#[derive(Clone, Default)]
pub struct Refresher {
    tenants: Arc<Mutex<HashMap<TenantId, Arc<Flight>>>>,
}

#[derive(Default)]
struct Flight {
    /// Refreshes begun so far.
    begun: AtomicU64,
    /// The number of the last one that succeeded; who holds the lock refreshes.
    done: tokio::sync::Mutex<u64>,
}

impl Refresher {
    /// Brings the directory's view of `tenant` up to date within [`READ_THROUGH`]; false when that failed.
    pub async fn read_through(&self, directory: &Directory, tenant: &TenantId) -> bool {
        matches!(timeout(READ_THROUGH, self.refresh(directory, tenant)).await, Ok(Ok(())))
    }

    /// Brings the directory's view of `tenant` up to date.
    pub async fn refresh(&self, directory: &Directory, tenant: &TenantId) -> Result<(), StoreError> {
        let flight = {
            let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(tenants.entry(tenant.clone()).or_default())
        };
        flight.join(|| directory.refresh(tenant)).await
    }
}

impl Flight {
    async fn join<F>(&self, refresh: impl FnOnce() -> F) -> Result<(), StoreError>
    where
        F: Future<Output = Result<(), StoreError>>,
    {
        let asked = self.begun.load(Ordering::SeqCst);
        let mut done = self.done.lock().await;
        if *done > asked {
            return Ok(());
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        refresh().await?;
        *done = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn callers_share_a_refresh_that_began_after_they_asked() {
        let flight = Arc::new(Flight::default());
        let runs = Arc::new(AtomicU64::new(0));
        let (release, held) = oneshot::channel::<()>();
        let call = |held: Option<oneshot::Receiver<()>>| {
            let (flight, runs) = (Arc::clone(&flight), Arc::clone(&runs));
            async move {
                flight
                    .join(|| async move {
                        runs.fetch_add(1, Ordering::SeqCst);
                        if let Some(held) = held {
                            held.await.ok();
                        }
                        Ok(())
                    })
                    .await
            }
        };
        let first = tokio::spawn(call(Some(held)));
        tokio::task::yield_now().await;
        let others: Vec<_> = (0..50).map(|_| tokio::spawn(call(None))).collect();
        tokio::task::yield_now().await;
        release.send(()).unwrap();
        first.await.unwrap().unwrap();
        for other in others {
            other.await.unwrap().unwrap();
        }
        assert_eq!(runs.load(Ordering::SeqCst), 2, "the first one, and one for all who came while it ran");
    }

    #[tokio::test]
    async fn a_failed_refresh_serves_nobody() {
        let flight = Flight::default();
        assert!(flight.join(|| async { Err(StoreError::Timeout) }).await.is_err());
        assert!(flight.join(|| async { Ok(()) }).await.is_ok());
    }
}
