//! `webhook-relay tenants`: makes and lists tenants, straight in the database. Running pods see a new one within a second.

use ingest::TenantShape;
use relay_core::ids::TenantId;
use relay_servers::{TenantUser, add_tenant, password_variable, tenant_lines};
use serde::Serialize;

use super::access::{AccessFlags, all, table, time};

/// What to do with tenants.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Makes a tenant: endpoints, events, dead letters and keys of its own, which no other tenant sees.
    ///
    /// On the private NATS server it gets a user that may publish below relay.events.TENANT and do nothing else; for NATS
    /// servers of your own the lines for their configuration are printed. Repeating it is fine, and shows them again.
    ///
    /// Examples:
    ///   webhook-relay tenants create acme
    ///   webhook-relay keys create --tenant acme --name shop --scope events:write
    #[command(verbatim_doc_comment)]
    Create(Create),
    /// Lists tenants, newest first.
    ///
    /// Example: webhook-relay tenants list --json
    #[command(verbatim_doc_comment)]
    List(List),
}

/// The arguments of `tenants create`.
#[derive(clap::Args, Debug)]
pub struct Create {
    /// Its name, also in NATS subjects: lower-case letters, digits, `_` and `-`
    #[arg(value_parser = TenantId::parse)]
    tenant: TenantId,
    #[command(flatten)]
    access: AccessFlags,
}

/// The arguments of `tenants list`.
#[derive(clap::Args, Debug)]
pub struct List {
    #[command(flatten)]
    access: AccessFlags,
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create(&args),
        Command::List(args) => list(&args),
    }
}

/// A tenant with its user at the private NATS server, where there is one.
#[derive(Serialize)]
struct Created {
    #[serde(flatten)]
    tenant: TenantShape,
    nats_url: Option<String>,
}

fn create(args: &Create) -> anyhow::Result<()> {
    let (tenant, is_new) = args.access.with_store(async |store| Ok(store.create_tenant(&args.tenant).await?))?;
    let user = if args.access.is_private()? { add_tenant(&args.access.data_dir, &args.tenant)? } else { None };
    let url = |user: &TenantUser, address| format!("nats://{}:{}@{address}", user.user, user.password);
    let nats_url = user.as_ref().zip(args.access.nats_address()).map(|(user, address)| url(user, address));
    if !args.access.print_json(&Created { tenant: TenantShape::from(&tenant), nats_url: nats_url.clone() })? {
        let tenant = &args.tenant;
        println!("tenant {tenant} {}", if is_new { "is there" } else { "was there already" });
        println!("a key for it:  webhook-relay keys create --tenant {tenant} --name <name> --scope events:write");
        match (user, nats_url) {
            (Some(user), Some(url)) => {
                let from_when = if user.is_live { "now" } else { "the next start" };
                println!("NATS, below relay.events.{tenant}, from {from_when} on:  {url}");
            }
            // It is in every configuration.
            _ if *tenant == TenantId::default_tenant() => {}
            _ => {
                let (export, account) = tenant_lines(tenant, &format!("${}", password_variable(tenant.as_str())));
                println!(
                    "for NATS servers of your own, among the exports of account RELAY:\n{export}and beside it:{account}"
                );
            }
        }
    }
    Ok(())
}

fn list(args: &List) -> anyhow::Result<()> {
    let part = async |store: &relay_store::Store| Ok(all(async |window| store.list_tenants(&window).await).await?);
    let tenants: Vec<_> = args.access.with_store(part)?.iter().map(TenantShape::from).collect();
    if !args.access.print_json(&tenants)? {
        let rows: Vec<_> = tenants.iter().map(|t| [t.id.clone(), time(t.created_at)]).collect();
        print!("{}", table(["TENANT", "CREATED"], &rows));
    }
    Ok(())
}
