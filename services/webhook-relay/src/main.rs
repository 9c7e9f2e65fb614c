//! `webhook-relay`: the command line, and all four services in one process.

mod all;
mod commands;
mod self_check;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Self-hosted webhook delivery.
///
/// Examples:
///   webhook-relay up                                   everything, with private servers below .relay/
///   webhook-relay up --database-url … --redis-url … --nats-url …
///   webhook-relay migrate --database-url postgres://…  brings the schema up to date
///   webhook-relay keys create --name shop --scope events:write
///   webhook-relay secrets rotate                       encrypts all secrets with the newest key
///   webhook-relay fsck                                 is everything there that was accepted?
///   webhook-relay recover --since 24h                  refills a database that was restored from a dump
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// A comment on a variant would take the place of the command's own help: only groups of commands have one.
#[derive(Subcommand, Debug)]
enum Command {
    Up(Box<commands::up::Args>),
    Servers(commands::servers::Args),
    Migrate(commands::migrate::Args),
    /// Makes, lists and revokes API keys
    #[command(subcommand)]
    Keys(commands::keys::Command),
    /// Makes keys for the secrets in the database, and encrypts them anew
    #[command(subcommand)]
    Secrets(commands::secrets::Command),
    /// Makes and lists tenants
    #[command(subcommand)]
    Tenants(commands::tenants::Command),
    Fsck(commands::fsck::Args),
    Recover(commands::recover::Args),
    Ingest(Box<ingest::Cli>),
    Dispatcher(Box<dispatcher::Cli>),
    Deliverer(Box<deliverer::Cli>),
    DlqManager(Box<dlq_manager::Cli>),
}

fn main() -> ExitCode {
    // Not #[tokio::main]: starting and looking after the private servers blocks (see relay-servers).
    let done = match Cli::parse().command {
        Command::Up(args) => commands::up::run(*args),
        Command::Servers(args) => commands::servers::run(args),
        Command::Migrate(args) => commands::migrate::run(args),
        Command::Keys(command) => commands::keys::run(command),
        Command::Secrets(command) => commands::secrets::run(command),
        Command::Tenants(command) => commands::tenants::run(command),
        Command::Fsck(args) => return commands::fsck::run(&args),
        Command::Recover(args) => return commands::recover::run(&args),
        Command::Ingest(cli) => ingest::main_with(*cli),
        Command::Dispatcher(cli) => dispatcher::main_with(*cli),
        Command::Deliverer(cli) => deliverer::main_with(*cli),
        Command::DlqManager(cli) => dlq_manager::main_with(*cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("webhook-relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn each_command_shows_its_own_help_with_examples() {
        for command in super::Cli::command().get_subcommands_mut().filter(|c| !c.has_subcommands()) {
            let help = command.render_long_help().to_string();
            let name = command.get_name();
            assert!(name == "servers" || help.contains("Example"), "{name}: {help}");
        }
    }

    #[test]
    fn the_help_of_recover_says_what_becomes_of_deliveries() {
        let mut cli = super::Cli::command();
        let help = cli.find_subcommand_mut("recover").map(|c| c.render_long_help().to_string()).unwrap_or_default();
        assert!(help.contains("are delivered again") && help.contains("Exit code"), "{help}");
    }
}
