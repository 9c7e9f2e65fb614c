//! Many small questions to the ledger, asked together: while a statement is under way, questions that come within a
//! few milliseconds of each other become the next one. Used for the check before the send and for large payloads.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the first question waits for others, while another statement is under way.
const LINGER: Duration = Duration::from_millis(5);

/// Asks. Cheap to clone.
pub struct Gather<Q, A> {
    questions: mpsc::Sender<(Q, oneshot::Sender<A>)>,
}

impl<Q, A> Clone for Gather<Q, A> {
    fn clone(&self) -> Self {
        Self { questions: self.questions.clone() }
    }
}

impl<Q: Send + 'static, A: Send + 'static> Gather<Q, A> {
    /// Starts the task that asks. `ask` gets up to `batch_max` questions and gives the answers in their order;
    /// `None` where it doesn't know. At most `waiting_max` questions wait. It ends with the last clone.
    pub fn start<F, R>(
        tasks: &TaskTracker,
        waiting_max: usize,
        batch_max: usize,
        stop: CancellationToken,
        ask: F,
    ) -> Self
    where
        F: Fn(Vec<Q>) -> R + Clone + Send + 'static,
        R: Future<Output = Option<Vec<A>>> + Send,
    {
        let (questions, waiting) = mpsc::channel(waiting_max);
        let statements = tasks.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(gather(waiting, batch_max, statements, ask)).await;
        });
        Self { questions }
    }

    /// The answer, or `None` where it isn't known.
    pub async fn ask(&self, question: Q) -> Option<A> {
        let (answer, answered) = oneshot::channel();
        self.questions.send((question, answer)).await.ok()?;
        answered.await.ok()
    }
}

async fn gather<Q, A, F, R>(
    mut waiting: mpsc::Receiver<(Q, oneshot::Sender<A>)>,
    batch_max: usize,
    statements: TaskTracker,
    ask: F,
) where
    Q: Send + 'static,
    A: Send + 'static,
    F: Fn(Vec<Q>) -> R + Clone + Send + 'static,
    R: Future<Output = Option<Vec<A>>> + Send,
{
    // Each statement under way holds a clone: while there is none, nobody waits for company.
    let under_way = Arc::new(());
    loop {
        let mut batch = Vec::new();
        if waiting.recv_many(&mut batch, batch_max).await == 0 {
            return;
        }
        let until = Instant::now() + LINGER;
        while batch.len() < batch_max && Arc::strong_count(&under_way) > 1 {
            let room = batch_max - batch.len();
            match timeout_at(until, waiting.recv_many(&mut batch, room)).await {
                Ok(n) if n > 0 => {}
                _ => break,
            }
        }
        let (ask, held) = (ask.clone(), Arc::clone(&under_way));
        // In a task of its own: a slow statement doesn't hold up the next questions.
        statements.spawn(async move {
            let (questions, askers): (Vec<Q>, Vec<_>) = batch.into_iter().unzip();
            let answers = ask(questions).await;
            drop(held);
            if let Some(answers) = answers {
                for (asker, answer) in askers.into_iter().zip(answers) {
                    // An asker that is gone needs no answer.
                    let _ = asker.send(answer);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test(start_paused = true)]
    async fn questions_that_come_together_are_asked_together() {
        let tasks = TaskTracker::new();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let gather = Gather::start(&tasks, 100, 3, CancellationToken::new(), move |questions: Vec<u32>| {
            log.lock().unwrap().push(questions.len());
            async move { Some(questions.into_iter().map(|q| q * 2).collect()) }
        });
        let answers = futures_util::future::join_all((0..5).map(|n| {
            let gather = gather.clone();
            async move { gather.ask(n).await }
        }))
        .await;
        assert_eq!(answers, [0, 2, 4, 6, 8].map(Some));
        assert_eq!(*asked.lock().unwrap(), [3, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_outcome_is_unknown_to_all_who_asked() {
        let tasks = TaskTracker::new();
        let gather = Gather::start(&tasks, 100, 3, CancellationToken::new(), |_: Vec<u32>| async { None::<Vec<u32>> });
        assert_eq!(gather.ask(1).await, None);
    }
}
