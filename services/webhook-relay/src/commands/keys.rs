//! `webhook-relay keys`: makes, lists and revokes API keys, straight in the database. Running pods see the change
//! within a second.

use anyhow::bail;
use chrono::{DateTime, TimeDelta, Utc};
use ingest::{KeyShape, KeyWithSecret};
use relay_core::ids::{KeyId, TenantId};
use relay_core::keys::{KEY_NAME_CHARS, KEYS_MAX, Scope, Scopes};
use relay_runtime::clock::Clock;
use relay_runtime::random;
use relay_store::{KeyCreation, KeyWish};
use secrecy::ExposeSecret;
use uuid::Uuid;

use super::access::{AccessFlags, all, table, time};

/// What to do with keys.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Makes an API key and shows it. It is shown only now: what is kept is its SHA-256.
    ///
    /// Scopes: `events:write` sends events, `read` looks at everything of the tenant, `admin` changes it and implies both,
    /// `operator` may do everything for all tenants. Requests carry the key as `Authorization: Bearer <key>`. On loopback the
    /// interface is open without a key only as long as no key was ever made.
    ///
    /// Examples:
    ///   webhook-relay keys create --name shop --scope events:write
    ///   webhook-relay keys create --name dashboard --scope read --tenant acme --expires 90d
    ///   webhook-relay keys create --name deploy --scope admin --expires 2030-01-01T00:00:00Z --json
    #[command(verbatim_doc_comment)]
    Create(Create),
    /// Lists API keys, newest first, with those that expired or were revoked.
    ///
    /// Examples:
    ///   webhook-relay keys list
    ///   webhook-relay keys list --tenant acme --json
    #[command(verbatim_doc_comment)]
    List(List),
    /// Makes an API key void, for good: everything that runs refuses it within a second.
    ///
    /// Example: webhook-relay keys revoke 0192f3a4-7c1e-7000-8000-3f2a9d5b6c01   (the id that `keys list` shows)
    #[command(verbatim_doc_comment)]
    Revoke(Revoke),
}

/// The arguments of `keys create`.
#[derive(clap::Args, Debug)]
pub struct Create {
    /// What people call it
    #[arg(long, value_parser = name)]
    name: String,
    /// The tenant that it is for (made by `webhook-relay tenants create`)
    #[arg(long, value_parser = TenantId::parse, default_value = "default")]
    tenant: TenantId,
    /// What it may be used for: events:write, read, admin, operator; may be repeated
    #[arg(long = "scope", required = true)]
    scopes: Vec<Scope>,
    /// When it ends: after a time (90d, 12h, 30m, 45s) or at one (2030-01-01T00:00:00Z); never without this
    #[arg(long, value_parser = expiry)]
    expires: Option<Expiry>,
    #[command(flatten)]
    access: AccessFlags,
}

/// The arguments of `keys list`.
#[derive(clap::Args, Debug)]
pub struct List {
    /// Only those of this tenant
    #[arg(long, value_parser = TenantId::parse)]
    tenant: Option<TenantId>,
    #[command(flatten)]
    access: AccessFlags,
}

/// The arguments of `keys revoke`.
#[derive(clap::Args, Debug)]
pub struct Revoke {
    /// The key's id (not the key)
    id: Uuid,
    #[command(flatten)]
    access: AccessFlags,
}

/// When a key ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    After(TimeDelta),
    At(DateTime<Utc>),
}

impl Expiry {
    fn at(self, now: DateTime<Utc>) -> anyhow::Result<DateTime<Utc>> {
        let at = match self {
            Self::After(delta) => now.checked_add_signed(delta),
            Self::At(at) => Some(at),
        };
        match at {
            Some(at) if at > now => Ok(at),
            _ => bail!("--expires must be in the future"),
        }
    }
}

fn expiry(text: &str) -> Result<Expiry, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(Expiry::At(at.with_timezone(&Utc)));
    }
    span(text).map(Expiry::After).map_err(|_| "must be like 90d, 12h, 30m, 45s or 2030-01-01T00:00:00Z".to_owned())
}

/// A span of time in whole days, hours, minutes or seconds.
pub fn span(text: &str) -> Result<TimeDelta, String> {
    let delta = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number = i64::from(number.parse::<u32>().ok()?);
        match unit {
            "d" => TimeDelta::try_days(number),
            "h" => TimeDelta::try_hours(number),
            "m" => TimeDelta::try_minutes(number),
            "s" => TimeDelta::try_seconds(number),
            _ => None,
        }
    };
    delta().ok_or_else(|| "must be like 90d, 12h, 30m or 45s".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    if !KEY_NAME_CHARS.contains(&text.chars().count()) || text.chars().any(char::is_control) {
        return Err(format!("must have 1 to {} characters, none of them a control character", KEY_NAME_CHARS.end()));
    }
    Ok(text.to_owned())
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create(args),
        Command::List(args) => list(&args),
        Command::Revoke(args) => revoke(&args),
    }
}

fn create(args: Create) -> anyhow::Result<()> {
    let now = Clock::system().now();
    let expires_at = args.expires.map(|expiry| expiry.at(now)).transpose()?;
    let wish = KeyWish { tenant: args.tenant, name: args.name, scopes: Scopes::of(args.scopes), expires_at };
    let tenant = wish.tenant.clone();
    let (new, secret) = wish.make(now, random::bytes10(), random::bytes32());
    let key = match args.access.with_store(async |store| Ok(store.create_key(&new).await?))? {
        KeyCreation::Created(key) => key,
        KeyCreation::NoTenant => bail!("there is no tenant {tenant}: webhook-relay tenants create {tenant}"),
        KeyCreation::TooMany => bail!("tenant {tenant} has {KEYS_MAX} keys that are not revoked: that is the limit"),
    };
    if !args.access.print_json(&KeyWithSecret::new(&key, &secret, now))? {
        let KeyShape { id, tenant, name, scopes, .. } = KeyShape::new(&key, now);
        eprintln!(
            "key {id} ({name}) of tenant {tenant}, scopes {}, expires {}",
            scopes.join(", "),
            time_or_never(expires_at)
        );
        eprintln!("It is shown only now:\n");
        // Alone on standard output, so that KEY=$(webhook-relay keys create …) works.
        println!("{}", secret.expose_secret());
    }
    Ok(())
}

fn list(args: &List) -> anyhow::Result<()> {
    let tenant = args.tenant.as_ref();
    let part = async |store: &relay_store::Store| Ok(all(async |window| store.list_keys(tenant, &window).await).await?);
    let keys = args.access.with_store(part)?;
    let now = Clock::system().now();
    let keys: Vec<_> = keys.iter().map(|key| KeyShape::new(key, now)).collect();
    if !args.access.print_json(&keys)? {
        let rows: Vec<_> = keys.into_iter().map(row).collect();
        print!("{}", table(["ID", "TENANT", "NAME", "KEY", "SCOPES", "STATUS", "EXPIRES", "LAST USED"], &rows));
    }
    Ok(())
}

fn row(key: KeyShape) -> [String; 8] {
    [
        key.id.to_string(),
        key.tenant,
        key.name,
        format!("{}…", key.hint),
        key.scopes.join(","),
        key.status.to_owned(),
        time_or_never(key.expires_at),
        time_or_never(key.last_used_at),
    ]
}

fn revoke(args: &Revoke) -> anyhow::Result<()> {
    let revoked = args.access.with_store(async |store| Ok(store.revoke_key(None, KeyId(args.id)).await?))?;
    let Some(key) = revoked else { bail!("there is no key {}: webhook-relay keys list shows them", args.id) };
    if !args.access.print_json(&KeyShape::new(&key, Clock::system().now()))? {
        println!("key {} ({}) of tenant {} is void", key.id, key.name, key.tenant);
    }
    Ok(())
}

fn time_or_never(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "never".to_owned(), time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_a_time_or_after_one() {
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let at = |text: &str| expiry(text).unwrap().at(now).unwrap().timestamp() - now.timestamp();
        assert_eq!((at("90d"), at("12h"), at("45s")), (90 * 86_400, 12 * 3_600, 45));
        assert_eq!(at("1970-01-12T13:46:41Z"), 1);
        for bad in ["", "d", "90", "-1d", "90w", "1.5d", "tomorrow", "é"] {
            assert!(expiry(bad).is_err(), "{bad}");
        }
        for past in ["0d", "1970-01-01T00:00:00Z"] {
            assert!(expiry(past).unwrap().at(now).is_err(), "{past}");
        }
        assert!(name("").is_err() && name("a\n").is_err() && name("ci").is_ok());
    }
}
