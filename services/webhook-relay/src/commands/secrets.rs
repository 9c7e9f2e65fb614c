//! `webhook-relay secrets`: makes keys for secrets at rest, and encrypts everything stored with the newest one.

use anyhow::bail;
use relay_core::sealing::SealingKeys;
use relay_runtime::flags::{LogFlags, SecretsFlags};
use relay_runtime::random;
use relay_store::{Resealed, Sealer, StoreOptions};
use secrecy::ExposeSecret;
use serde::Serialize;
use uuid::Uuid;

use super::access::{AccessFlags, table};

/// Endpoints that are listed when their secrets can't be opened.
const FAILED_SHOWN: usize = 20;

/// What to do about secrets at rest.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Makes a key that encrypts signing secrets and secret headers in the database, and prints it.
    ///
    /// Give it to every ingest and deliverer, by --secrets-key-file (or RELAY_SECRETS_KEY_FILE) or by RELAY_SECRETS_KEY. Keep
    /// a copy apart from the backups of the database: without it the secrets in them can't be read, and with it they can.
    /// `webhook-relay up` makes one by itself, in its data directory.
    ///
    /// Examples:
    ///   (umask 077; webhook-relay secrets generate > relay.keys)
    ///   RELAY_SECRETS_KEY=$(webhook-relay secrets generate) docker compose up -d
    #[command(verbatim_doc_comment)]
    Generate,
    /// Encrypts all stored secrets with the first key, also those that are plain text until now. Pods may work meanwhile.
    ///
    /// To change the key:
    ///   1. webhook-relay secrets generate >> relay.keys     append it for every ingest and deliverer, and restart them
    ///   2. move the new line to the top of the file         and restart them again: new secrets are encrypted with it
    ///   3. webhook-relay secrets rotate                     then nothing stored needs the old key
    ///   4. remove the old line                              at the next restart
    ///
    /// A deliverer that lacks a key says which, is not ready, and holds that endpoint's deliveries until it gets it.
    ///
    /// Examples:
    ///   webhook-relay secrets rotate                        the database of the running `webhook-relay up`
    ///   webhook-relay secrets rotate --database-url postgres://… --secrets-key-file relay.keys
    #[command(verbatim_doc_comment)]
    Rotate(Box<Rotate>),
}

/// The arguments of `secrets rotate`.
#[derive(clap::Args, Debug)]
pub struct Rotate {
    #[command(flatten)]
    access: AccessFlags,
    #[command(flatten)]
    secrets: SecretsFlags,
    #[command(flatten)]
    log: LogFlags,
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Generate => {
            // Alone on standard output, so that it can go into a file.
            println!("{}", SealingKeys::generate(random::bytes32()).expose_secret());
            Ok(())
        }
        Command::Rotate(args) => rotate(&args),
    }
}

/// What `rotate` answers in JSON.
#[derive(Serialize)]
struct Answer {
    /// Id of the key that everything is encrypted with.
    key: String,
    endpoints: u64,
    /// Secrets that were encrypted with another key.
    rotated: u64,
    /// Secrets that were plain text.
    encrypted: u64,
    /// Endpoints that kept changing; run it again.
    unsettled: u64,
    failed: Vec<Failed>,
    /// Given keys that nothing stored needs any more.
    unneeded_keys: Vec<String>,
}

#[derive(Serialize)]
struct Failed {
    tenant: String,
    endpoint_id: Uuid,
    why: String,
}

impl Answer {
    /// `ids`: of the given keys, that of the first one first.
    fn new(ids: &[String], done: Resealed) -> Self {
        let failed: Vec<_> = done
            .failed
            .into_iter()
            .map(|f| Failed { tenant: f.tenant.to_string(), endpoint_id: f.endpoint.0, why: f.why.to_string() })
            .collect();
        let (key, others) = ids.split_first().map_or((String::new(), Vec::new()), |(k, o)| (k.clone(), o.to_vec()));
        let is_done = failed.is_empty() && done.unsettled == 0;
        Self {
            key,
            endpoints: done.endpoints,
            rotated: done.rotated,
            encrypted: done.encrypted,
            unsettled: done.unsettled,
            failed,
            unneeded_keys: if is_done { others } else { Vec::new() },
        }
    }

    fn print(&self) {
        println!(
            "{} endpoints: {} secrets re-encrypted with key {}, {} encrypted for the first time",
            self.endpoints, self.rotated, self.key, self.encrypted
        );
        if !self.unneeded_keys.is_empty() {
            println!("nothing stored needs any more: {}", self.unneeded_keys.join(", "));
        }
        let shown = self.failed.iter().take(FAILED_SHOWN);
        let rows: Vec<_> = shown.map(|f| [f.endpoint_id.to_string(), f.tenant.clone(), f.why.clone()]).collect();
        if !rows.is_empty() {
            print!("{}", table(["ENDPOINT", "TENANT", "NOT CHANGED"], &rows));
        }
    }
}

fn rotate(args: &Rotate) -> anyhow::Result<()> {
    args.log.init()?;
    let keys = args.access.keys(&args.secrets)?;
    if keys.is_empty() {
        bail!(
            "there is no key: webhook-relay secrets generate makes one, --secrets-key-file or RELAY_SECRETS_KEY says which"
        );
    }
    let ids: Vec<String> = keys.ids().map(|id| id.to_string()).collect();
    let options = StoreOptions::new("webhook-relay secrets").with_secrets(Sealer::new(keys, random::bytes12));
    let done = args.access.with_options(options, async |store| Ok(store.reseal_all().await?))?;
    let answer = Answer::new(&ids, done);
    if !args.access.print_json(&answer)? {
        answer.print();
    }
    if !answer.failed.is_empty() {
        bail!("the secrets of {} endpoints can't be read with these keys: add the missing ones", answer.failed.len());
    }
    if answer.unsettled > 0 {
        bail!("{} endpoints were changed again and again meanwhile: run it again", answer.unsettled);
    }
    Ok(())
}
