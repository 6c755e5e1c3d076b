//! Line protocol on standard input. Back-pressure is not reading.

use std::io::Read;

use tokio::sync::mpsc;

use super::{BATCH_WAIT, LINES_MAX, Sink};

/// Bytes of one group at most.
const BYTES_MAX: usize = 1 << 20;
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

/// Where the last whole line ends within the first [`LINES_MAX`] lines.
fn whole_lines(text: &[u8]) -> usize {
    let ends = text.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1);
    ends.take(LINES_MAX).last().unwrap_or(0)
}

/// Reads until the pipe closes, then stays, so that the source does not count as failed.
pub async fn run(sink: Sink) {
    let (out, mut input) = mpsc::channel(READ.1);
    let reader = std::thread::Builder::new().name("stdin".into()).spawn(move || read_all(&out));
    if let Err(error) = reader {
        tracing::error!(%error, "no thread for standard input");
        return;
    }
    let mut text = Vec::new();
    let mut open = true;
    while open || !text.is_empty() {
        let mut deadline = sink.clock.sleep(BATCH_WAIT);
        while open && text.len() < BYTES_MAX {
            tokio::select! {
                read = input.recv() => match read {
                    Some(read) => text.extend_from_slice(&read),
                    None => open = false,
                },
                () = &mut deadline => break,
            }
        }
        let whole = match whole_lines(&text) {
            // The end of the input ends a line too; and a line over the limit must be refused.
            0 if !open || text.len() >= BYTES_MAX => text.len(),
            whole => whole,
        };
        if whole > 0 {
            let head: Vec<u8> = text.drain(..whole).collect();
            while !sink.lines(&head, None, false).await {
                sink.clock.sleep(BATCH_WAIT).await;
            }
        }
    }
    tracing::info!("standard input ended");
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_taken_and_no_more_than_a_frame_of_them() {
        assert_eq!(whole_lines(b"a v=1\nb v"), 6);
        assert_eq!(whole_lines(b"a v"), 0);
        let many = b"a v=1\n".repeat(LINES_MAX + 10);
        assert_eq!(whole_lines(&many), 6 * LINES_MAX);
    }
}
