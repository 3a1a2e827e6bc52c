//! `migrator receive`: the other end of `move`.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;

use super::prefetch::{Bar, options, print};
use crate::cli::ReceiveArgs;
use crate::criu::Criu;
use crate::destination::check_loopback;
use crate::exit::{Outcome, Usage};
use crate::live;
use crate::prefetch::{Options, Report};
use crate::protocol::Message;
use crate::signals::Signals;
use crate::transfer::{self, Aborted, Guests};

/// Runs the command.
pub(super) fn run(args: ReceiveArgs) -> anyhow::Result<Outcome> {
    if let Some(address) = args.listen {
        check_loopback(address.ip()).map_err(|why| Usage(format!("--listen {address} {why}")))?;
    } else if io::stdin().is_terminal() {
        return Err(Usage(
            "--stdio is what `migrator move --to ssh://` runs; to wait for a source on this \
             machine, use --listen"
                .into(),
        )
        .into());
    }
    // Whoever limits what may be read does not mean to have programs started.
    let takes_over = args.stdio && !args.cache_only && args.warm.allow.is_empty();
    let mut options = options(args.warm)?;
    options.is_foreign = true;
    let guests = guests(Criu::new(args.criu), options.clone(), takes_over);
    let signals = Signals::block()?;
    let runtime = transfer::runtime()?;
    let received = {
        let _bar = Bar::show(&options.progress);
        runtime.block_on(receive(args.listen, options, guests, &signals))
    };
    // A thread of tokio's may be in a read of standard input.
    runtime.shutdown_background();

    match received {
        Ok(None) => Ok(Outcome::Done),
        Ok(Some(report)) => {
            // Standard output is the source's, and so is the report.
            if args.listen.is_some() {
                print(&report, args.json).context("failed to print the report")?;
            }
            Ok(outcome(&report))
        }
        Err(Aborted { error, so_far }) => {
            match so_far {
                Some(report) if args.listen.is_some() => {
                    print(&report, args.json).context("failed to print the report")?;
                }
                Some(report) => crate::say::raw(&report.to_string()),
                None => {}
            }
            Err(error)
        }
    }
}

/// How `move` and `receive` end with such a report.
pub(super) fn outcome(report: &Report) -> Outcome {
    match report.is_complete() {
        true => Outcome::Done,
        false => Outcome::Incomplete,
    }
}

/// Who serves a source that wants more than a prefetch.
fn guests(criu: Criu, options: Options, takes_over: bool) -> Guests {
    Box::new(move |peer, first| {
        match first {
            Message::Order(order) if takes_over => {
                let stop = Arc::clone(&options.stop);
                live::destination::serve(peer, &order, &criu, options, &stop)?;
            }
            Message::Ask(question) if takes_over => {
                live::destination::answer(peer, &question, &options.stop)?;
            }
            _ => {
                let why = "this `migrator receive` only prefetches: it takes over no processes";
                peer.close(Some(Message::Failed(why.into())));
                anyhow::bail!("refused to take over a process: only prefetching is allowed");
            }
        }
        Ok(None)
    })
}

async fn receive(
    listen: Option<SocketAddr>,
    options: Options,
    guests: Guests,
    signals: &Signals,
) -> Result<Option<Report>, Aborted> {
    let Some(address) = listen else {
        let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
        return transfer::receive(input, output, options, guests, signals.came()).await;
    };
    let source = tokio::select! {
        source = accept(address) => source?,
        ended = signals.came() => {
            ended?;
            return Err(anyhow::anyhow!("interrupted before a source came").into());
        }
    };
    let (input, output) = source.into_split();
    transfer::receive(input, output, options, guests, signals.came()).await
}

/// Waits for a source; nobody else can connect afterwards.
async fn accept(address: SocketAddr) -> anyhow::Result<tokio::net::TcpStream> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on {address}"))?;
    let address = listener
        .local_addr()
        .context("failed to learn on which port it listens")?;
    crate::say!("listening on {address}");
    let (stream, _) = listener
        .accept()
        .await
        .with_context(|| format!("failed to accept a source on {address}"))?;
    Ok(stream)
}
