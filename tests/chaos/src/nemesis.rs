//! The one who hurts the system: two lanes side by side, one at processes of ours, one at servers and networks, each with
//! faults and pauses drawn from the seed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use relay_servers::{ServerKind, Servers, Signal};
use serde_json::json;
use tokio::time::sleep;

use crate::dice::Dice;
use crate::faults::{Done, Fault, Role};
use crate::receivers::Receivers;
use crate::system::{BATCH, Pod, System};

/// Size of EVENTS while it is to be full: some hundred events.
const FULL_BYTES: u64 = 64 * 1024;
/// So much below it counts as full: less than the next bundle takes.
const NEARLY_BYTES: u64 = 16 * 1024;
/// How long it is waited for that.
const FILLED_WITHIN: Duration = Duration::from_secs(20);

/// When a fault begins, and what it hits: what is in flight, and the ports of the one deliverer, if it is one.
struct Hit {
    at: Duration,
    in_flight: u64,
    ports: Option<HashSet<u16>>,
}

/// The faults of a run, done and to be done.
pub struct Nemesis {
    /// The system.
    pub system: Arc<System>,
    /// Tell what is in flight.
    pub receivers: Receivers,
    /// The start of the run.
    pub start: Instant,
    /// Until when faults begin, counted from the start.
    pub until: Duration,
    /// What was done.
    pub done: Mutex<Vec<Done>>,
}

impl Nemesis {
    /// Does these faults until the time is over; each has ended when this returns.
    pub async fn run(&self, faults: &[Fault], seed: u64) -> anyhow::Result<()> {
        let (ours, theirs): (Vec<Fault>, Vec<Fault>) = faults.iter().partition(|f| f.is_ours());
        let lanes = (self.lane(ours, Dice::new(seed, 1)), self.lane(theirs, Dice::new(seed, 2)));
        let (ours, theirs) = tokio::join!(lanes.0, lanes.1);
        ours.and(theirs)
    }

    async fn lane(&self, faults: Vec<Fault>, mut dice: Dice) -> anyhow::Result<()> {
        loop {
            sleep(Duration::from_millis(dice.between(1_000, 8_000))).await;
            let Some(fault) = dice.pick(&faults).copied() else { return Ok(()) };
            if self.start.elapsed() >= self.until {
                return Ok(());
            }
            println!("{:>6.1} {fault}", self.start.elapsed().as_secs_f64());
            let mut hit = self.all_deliverers().await;
            let done = self.inflict(fault, &mut dice, &mut hit).await;
            let to = self.start.elapsed();
            // Also one that went wrong has hurt the system.
            let Hit { at: from, in_flight, ports } = hit;
            let cost = fault.cost(to.saturating_sub(from));
            let one = Done { fault, from, to, cost, in_flight, ports };
            self.done.lock().expect("nothing panics while it holds this lock").push(one);
            done?;
        }
    }

    /// Every deliverer is hit, with all that is in flight.
    async fn all_deliverers(&self) -> Hit {
        let mut unrecorded = 0;
        for pod in &self.system.pods {
            unrecorded += match pod.try_lock() {
                Ok(pod) if pod.role == Role::Deliverer => pod.unrecorded().await,
                Ok(_) => 0,
                // The other lane has it, whatever it is.
                Err(_) => BATCH,
            };
        }
        Hit { at: self.start.elapsed(), in_flight: self.receivers.in_flight(None) + unrecorded, ports: None }
    }

    /// A process stands still; a deliverer is hit alone, with what it has in flight now.
    async fn stop(&self, pod: &Pod, hit: &mut Hit) -> anyhow::Result<()> {
        if pod.role != Role::Deliverer {
            return pod.signal("STOP");
        }
        let unrecorded = pod.unrecorded().await;
        let at = self.start.elapsed();
        pod.signal("STOP")?;
        let ports = pod.ports()?;
        *hit = Hit { at, in_flight: self.receivers.in_flight(Some(&ports)) + unrecorded, ports: Some(ports) };
        Ok(())
    }

    async fn inflict(&self, fault: Fault, dice: &mut Dice, hit: &mut Hit) -> anyhow::Result<()> {
        let system = &self.system;
        match fault {
            Fault::Kill(role) => {
                let pods = system.of_role(role).await;
                let Some(pod) = dice.pick(&pods) else { return Ok(()) };
                let mut pod = pod.lock().await;
                self.stop(&pod, hit).await?;
                pod.kill()?;
                sleep(Duration::from_millis(dice.between(0, 2_000))).await;
                system.launch(&mut pod)
            }
            Fault::KillAll => {
                let mut pods = Vec::new();
                for pod in &system.pods {
                    pods.push(pod.lock().await);
                }
                for pod in &mut pods {
                    pod.kill()?;
                }
                pods.iter_mut().try_for_each(|pod| system.launch(pod))
            }
            Fault::Stop(role) => {
                let pods = system.of_role(role).await;
                let Some(pod) = dice.pick(&pods) else { return Ok(()) };
                let pod = pod.lock().await;
                self.stop(&pod, hit).await?;
                sleep(Duration::from_millis(dice.between(5_000, 20_000))).await;
                pod.signal("CONT")
            }
            Fault::Restart => {
                for pod in &system.pods {
                    let mut pod = pod.lock().await;
                    pod.terminate().await?;
                    system.launch(&mut pod)?;
                    pod.wait_ready().await?;
                }
                Ok(())
            }
            Fault::Crash(kind) => self.crash(&[kind], Signal::Kill).await,
            Fault::CrashAll => self.crash(&ServerKind::ALL, Signal::Kill).await,
            Fault::Immediate => self.crash(&[ServerKind::Postgres], Signal::Quit).await,
            Fault::Terminate => {
                let query = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                             where pid <> pg_backend_pid() and backend_type = 'client backend'";
                for _ in 0..dice.between(5, 15) {
                    // Its own session may be among those that another one ends.
                    let _ = system.sql(query).await;
                    sleep(Duration::from_millis(300)).await;
                }
                Ok(())
            }
            Fault::Flush => system.flush_redis().await,
            Fault::DeleteJobs => {
                // It isn't there where nobody needed it since the last time.
                let _ = system.jetstream("STREAM.DELETE.JOBS", &json!({})).await;
                Ok(())
            }
            Fault::Full => {
                let mut stopped = Vec::new();
                for pod in &system.of_role(Role::Dispatcher).await {
                    let pod = Arc::clone(pod).lock_owned().await;
                    pod.signal("STOP")?;
                    stopped.push(pod);
                }
                // What is worked off makes no room.
                let info = system.jetstream("CONSUMER.INFO.EVENTS.dispatcher", &json!({})).await?;
                let floor = info["ack_floor"]["stream_seq"].as_u64().unwrap_or_default();
                system.jetstream("STREAM.PURGE.EVENTS", &json!({"seq": floor + 1})).await?;
                let info = system.jetstream("STREAM.INFO.EVENTS", &json!({})).await?;
                let mut config = info["config"].clone();
                let max = std::mem::replace(&mut config["max_bytes"], json!(FULL_BYTES));
                system.jetstream("STREAM.UPDATE.EVENTS", &config).await?;
                // On a slow machine producers take their time to fill it.
                let patience = Instant::now() + FILLED_WITHIN;
                while Instant::now() < patience {
                    let info = system.jetstream("STREAM.INFO.EVENTS", &json!({})).await?;
                    if info["state"]["bytes"].as_u64().unwrap_or_default() >= FULL_BYTES - NEARLY_BYTES {
                        break;
                    }
                    sleep(Duration::from_millis(200)).await;
                }
                sleep(Duration::from_millis(dice.between(2_000, 10_000))).await;
                config["max_bytes"] = max;
                system.jetstream("STREAM.UPDATE.EVENTS", &config).await?;
                stopped.iter().try_for_each(|pod| pod.signal("CONT"))
            }
            Fault::Away(kind) => {
                system.proxy(kind).cut();
                sleep(self.a_while(dice)).await;
                system.proxy(kind).restore();
                Ok(())
            }
            Fault::Slow(kind) => {
                system.proxy(kind).slow(Duration::from_millis(dice.between(20, 300)));
                sleep(Duration::from_millis(dice.between(3_000, 10_000))).await;
                system.proxy(kind).restore();
                Ok(())
            }
            Fault::Reset(kind) => {
                for _ in 0..dice.between(1, 5) {
                    system.proxy(kind).reset();
                    sleep(Duration::from_millis(dice.between(100, 1_000))).await;
                }
                Ok(())
            }
            Fault::Hole(kind) => {
                system.proxy(kind).black_hole();
                sleep(Duration::from_millis(dice.between(2_000, 20_000))).await;
                // Half of the connections that nobody heard of for so long are gone when the network is back.
                if dice.one_in(2) {
                    system.proxy(kind).reset();
                }
                system.proxy(kind).restore();
                Ok(())
            }
        }
    }

    async fn crash(&self, kinds: &[ServerKind], signal: Signal) -> anyhow::Result<()> {
        let kinds = kinds.to_vec();
        let work = move |servers: &mut Servers| {
            kinds.iter().try_for_each(|kind| servers.stop_server(*kind, signal))?;
            kinds.iter().try_for_each(|kind| start_again(servers, *kind))
        };
        self.system.servers(work).await
    }

    /// In long runs one outage in four lasts a minute.
    fn a_while(&self, dice: &mut Dice) -> Duration {
        let minute = dice.one_in(4) && self.until >= Duration::from_secs(180);
        if minute { Duration::from_secs(60) } else { Duration::from_millis(dice.between(2_000, 15_000)) }
    }
}

/// The processes of a killed PostgreSQL notice its end a little later, and until then it doesn't start again.
fn start_again(servers: &mut Servers, kind: ServerKind) -> anyhow::Result<()> {
    for _ in 0..20 {
        if servers.start_server(kind).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(servers.start_server(kind)?)
}
