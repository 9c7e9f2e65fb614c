//! `dispatcher`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match dispatcher::main_with(dispatcher::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dispatcher: {error:#}");
            ExitCode::FAILURE
        }
    }
}
