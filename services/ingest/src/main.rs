//! The binary `ingest`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match ingest::main_with(ingest::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ingest: {error:#}");
            ExitCode::FAILURE
        }
    }
}
