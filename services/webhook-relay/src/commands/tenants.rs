//! `webhook-relay tenants`: makes and lists tenants, straight in the database. Running pods see a new one within a second.

use ingest::TenantShape;
use relay_core::ids::TenantId;

use super::access::{AccessFlags, all, table};

/// What to do with tenants.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Makes a tenant
    Create(Create),
    /// Lists tenants, newest first
    List(List),
}

/// Makes a tenant: endpoints, events, dead letters and keys of its own, which no other tenant sees.
///
/// Examples:
///   webhook-relay tenants create acme
///   webhook-relay keys create --tenant acme --name shop --scope events:write
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Create {
    /// Its name, also in NATS subjects: lower-case letters, digits, `_` and `-`
    #[arg(value_parser = TenantId::parse)]
    tenant: TenantId,
    #[command(flatten)]
    access: AccessFlags,
}

/// Lists tenants, newest first.
///
/// Example: webhook-relay tenants list --json
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
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

fn create(args: &Create) -> anyhow::Result<()> {
    let (tenant, is_new) = args.access.with_store(async |store| Ok(store.create_tenant(&args.tenant).await?))?;
    if !args.access.print_json(&TenantShape::from(&tenant))? {
        let tenant = &args.tenant;
        println!("tenant {tenant} {}", if is_new { "is there" } else { "was there already" });
        println!("a key for it:  webhook-relay keys create --tenant {tenant} --name <name> --scope events:write");
    }
    Ok(())
}

fn list(args: &List) -> anyhow::Result<()> {
    let part = async |store: &relay_store::Store| Ok(all(async |window| store.list_tenants(&window).await).await?);
    let tenants: Vec<_> = args.access.with_store(part)?.iter().map(TenantShape::from).collect();
    if !args.access.print_json(&tenants)? {
        let time = |t: &TenantShape| t.created_at.format("%Y-%m-%d %H:%M:%SZ").to_string();
        let rows: Vec<_> = tenants.iter().map(|t| [t.id.clone(), time(t)]).collect();
        print!("{}", table(["TENANT", "CREATED"], &rows));
    }
    Ok(())
}
