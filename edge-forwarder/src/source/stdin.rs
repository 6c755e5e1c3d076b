//! Line protocol on standard input. Back-pressure is not reading.
//!
//! Owns: one thread that reads. Never: keeps more than a few MiB; drops a line uncounted.

use std::{io::Read, time::Duration};

use tokio::sync::mpsc;

use super::{
    Sink,
    lines::{self, LINE_BYTES_MAX, LINES_MAX},
};
use crate::gap::Cause;

/// How long a line waits for company.
const BATCH_WAIT: Duration = Duration::from_millis(200);
/// Bytes of one read, and reads that may wait.
const READ: (usize, usize) = (64 * 1024, 4);

/// Reads on a thread of its own, because standard input blocks.
fn read_all(out: &mpsc::Sender<Vec<u8>>) {
    let mut input = std::io::stdin().lock();
    let mut buffer = vec![0u8; READ.0];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                let read = buffer.get(..n).unwrap_or_default().to_vec();
                if out.blocking_send(read).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "standard input cannot be read");
                return;
            }
        }
    }
}

/// Reads until the pipe closes, then stays, so that the source does not count as failed.
pub async fn run(sink: Sink) {
    let (out, input) = mpsc::channel(READ.1);
    let reader = std::thread::Builder::new().name("stdin".into()).spawn(move || read_all(&out));
    if let Err(error) = reader {
        tracing::error!(%error, "no thread for standard input");
        return;
    }
    follow(&sink, input).await;
    tracing::info!("standard input ended");
    std::future::pending::<()>().await;
}

/// Takes reads until there are no more, and stores every line of them.
async fn follow(sink: &Sink, mut input: mpsc::Receiver<Vec<u8>>) {
    let mut text = Vec::new();
    let mut skipping = false;
    let mut open = true;
    while open || !text.is_empty() {
        let mut deadline = sink.clock.sleep(BATCH_WAIT);
        let mut lines = text.iter().filter(|b| **b == b'\n').count();
        while open && text.len() < LINE_BYTES_MAX && lines < LINES_MAX {
            tokio::select! {
                read = input.recv() => match read {
                    Some(read) => {
                        lines += read.iter().filter(|b| **b == b'\n').count();
                        text.extend_from_slice(&read);
                    }
                    None => open = false,
                },
                () = &mut deadline => break,
            }
        }
        let cut = lines::cut(&text, &mut skipping, !open);
        text.drain(..cut.skip);
        if cut.too_long {
            sink.gap(Cause::Rejected, 1, "a line is longer than 1 MiB", None).await;
        }
        let mut left = cut.take;
        let mut backoff = sink.backoff();
        while left > 0 {
            let done = sink.lines(text.get(..left).unwrap_or_default(), &|_| None, false).await;
            text.drain(..done);
            left -= done;
            if left > 0 {
                sink.clock.sleep(backoff.pause(sink.entropy.as_ref())).await;
            }
        }
    }
}
