//! Rank 0's side: it hears every rank, passes on what they bring, and says when the run cannot go on.

use super::wire::{End, Message, receive, send, why};
use super::{Place, Shared, Timing, host, lock, spawn};
use crate::error::{Error, Result};
use std::io::ErrorKind;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The connections of rank 0; rank r's is at r - 1.
pub(super) struct Hub {
    streams: Vec<Mutex<TcpStream>>,
    hosts: Vec<String>,
    shared: Arc<Shared>,
    heard: Mutex<Heard>,
}

/// What was heard of all ranks, rank 0 among them.
struct Heard {
    /// What they brought to the next meeting.
    brought: Vec<Option<Vec<u8>>>,
    /// Whether they wait, and after how many exchanges.
    state: Vec<(bool, u64)>,
    /// Since when all wait and nothing has changed.
    still_since: Option<Instant>,
}

impl Hub {
    /// Waits for all ranks to call.
    pub(super) fn gather(
        listener: &TcpListener,
        place: &Place,
        token: &str,
        timing: Timing,
        shared: Arc<Shared>,
    ) -> Result<Arc<Self>> {
        let deadline = Instant::now() + timing.start;
        let failed =
            |e: std::io::Error| Error::Failed(format!("rank 0 cannot listen for the other ranks: {e}"));
        listener.set_nonblocking(true).map_err(failed)?;
        let mut callers: Vec<Option<(TcpStream, String)>> = (1..place.count).map(|_| None).collect();
        while callers.iter().any(Option::is_none) {
            match listener.accept() {
                Ok((stream, _)) => admit(stream, place, token, &mut callers),
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(20)),
                Err(e) => return Err(failed(e)),
            }
            if Instant::now() > deadline {
                let missing = callers.iter().zip(1..).filter(|(caller, _)| caller.is_none());
                let missing: Vec<String> = missing.map(|(_, rank)| rank.to_string()).collect();
                return Err(Error::Failed(format!(
                    "rank 0 on {}: of {} ranks, {} did not come within {} s: look at their output, and whether their nodes see \
                     the run's folder and reach this one",
                    host(),
                    place.count,
                    missing.join(", "),
                    timing.start.as_secs()
                )));
            }
        }
        let (mut streams, mut hosts) = (vec![], vec![host()]);
        for (stream, name) in callers.into_iter().flatten() {
            stream.set_read_timeout(Some(timing.silence)).map_err(failed)?;
            streams.push(stream);
            hosts.push(name);
        }
        let mut readers = vec![];
        for stream in &mut streams {
            // One that is gone already is found by its reader.
            let _ = send(stream, &Message::Welcome);
            readers.push(stream.try_clone().map_err(failed)?);
        }
        let heard = Heard {
            brought: vec![None; hosts.len()],
            state: vec![(false, 0); hosts.len()],
            still_since: None,
        };
        let streams = streams.into_iter().map(Mutex::new).collect();
        let hub = Arc::new(Self { streams, hosts, shared, heard: Mutex::new(heard) });
        for (stream, rank) in readers.into_iter().zip(1..) {
            let hub = hub.clone();
            spawn(&format!("rank {rank}"), move || hub.hear(stream, rank, timing))?;
        }
        let beats = Arc::downgrade(&hub);
        spawn("beats", move || {
            while let Some(hub) = beats.upgrade() {
                if hub.is_over() {
                    break;
                }
                hub.tell(&hub.shared.beat());
                hub.look_for_standstill(timing);
                drop(hub);
                std::thread::sleep(timing.beat);
            }
        })?;
        Ok(hub)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        let state = self.shared.lock();
        state.closed || state.cause.is_some()
    }

    /// Listens to one rank until it is gone.
    fn hear(&self, mut stream: TcpStream, rank: usize, timing: Timing) {
        loop {
            let cause = match receive(&mut stream) {
                Ok(Message::Bring { number, bytes, last }) => {
                    self.bring(rank, number, bytes.into_vec(), last);
                    continue;
                }
                Ok(Message::Beat { waiting, exchanges }) => {
                    let mut heard = self.heard();
                    if heard.state[rank] != (waiting, exchanges) {
                        (heard.state[rank], heard.still_since) = ((waiting, exchanges), None);
                    }
                    continue;
                }
                Ok(Message::Failed { cause }) => cause,
                Ok(_) => continue,
                Err(error) => why(&error, timing),
            };
            return self.end(End { rank, host: self.hosts[rank].clone(), cause, unheard: false });
        }
    }

    /// Sends a message to all other ranks. One that cannot be reached is found by its reader.
    fn tell(&self, message: &Message) {
        for stream in &self.streams {
            let _ = send(&mut lock(stream), message);
        }
    }

    /// What `rank` brings to meeting `number`; the last to come sends everybody home with all of it.
    pub(super) fn bring(&self, rank: usize, number: u64, bytes: Vec<u8>, last: bool) {
        let mut heard = self.heard();
        heard.brought[rank] = Some(bytes);
        heard.still_since = None;
        if heard.brought.iter().any(Option::is_none) {
            return;
        }
        let all: Vec<Vec<u8>> =
            heard.brought.iter_mut().map(|brought| brought.take().unwrap_or_default()).collect();
        drop(heard);
        if last {
            // Whoever hangs up after this has nothing more to do.
            self.shared.close();
        }
        let bytes = all.iter().cloned().map(Into::into).collect();
        self.tell(&Message::All { number, bytes, last });
        self.shared.lock().met = Some((number, all));
        self.shared.changed.notify_all();
    }

    /// Tells all ranks, and this one, that the run cannot go on.
    pub(super) fn end(&self, end: End) {
        self.shared.end(end, |end| {
            self.tell(&Message::End(end.clone()));
            // A process that ends at once may take with it what the others have not read yet.
            std::thread::sleep(Duration::from_millis(200));
        });
    }

    /// Closes all connections.
    pub(super) fn hang_up(&self) {
        self.shared.close();
        for stream in &self.streams {
            let _ = lock(stream).shutdown(Shutdown::Both);
        }
    }

    /// All ranks wait and none has moved for long: they wait for each other.
    fn look_for_standstill(&self, timing: Timing) {
        let own = {
            let state = self.shared.lock();
            (state.waiting > 0, state.exchanges)
        };
        let mut heard = self.heard();
        if heard.state[0] != own {
            (heard.state[0], heard.still_since) = (own, None);
        }
        if heard.state.iter().any(|(waiting, _)| !waiting) {
            heard.still_since = None;
            return;
        }
        let since = *heard.still_since.get_or_insert_with(Instant::now);
        if since.elapsed() < timing.standstill {
            return;
        }
        // The rank with the fewest exchanges is the one that the others wait for.
        let counts: Vec<u64> = heard.state.iter().map(|(_, exchanges)| *exchanges).collect();
        drop(heard);
        let (least, most) =
            (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0));
        let rank = counts.iter().position(|&count| count == least).unwrap_or(0);
        let cause = match least == most {
            true => format!(
                "all ranks have waited for each other for {} s, after {most} exchanges each: the network between their devices \
                 stands still (NCCL_DEBUG=WARN says more)",
                timing.standstill.as_secs_f64()
            ),
            false => format!(
                "all ranks have waited for each other for {} s, this one after {least} exchanges and others after {most}; \
                 please report this",
                timing.standstill.as_secs_f64()
            ),
        };
        self.end(End { rank, host: self.hosts[rank].clone(), cause, unheard: false });
    }
}

/// Takes or refuses a caller.
fn admit(mut stream: TcpStream, place: &Place, token: &str, callers: &mut [Option<(TcpStream, String)>]) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_nodelay(true);
    // One that says nothing is no rank.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let Ok(Message::Hello { rank, count, host, token: theirs }) = receive(&mut stream) else { return };
    let why = if theirs != token {
        Some("it trains something else: give all ranks the same command, and wait until an older run has ended".to_owned())
    } else if count != place.count {
        Some(format!("it counts {} ranks, and rank {rank} counts {count}", place.count))
    } else {
        match rank.checked_sub(1).and_then(|at| callers.get_mut(at)) {
            None => Some(format!("there is no rank {rank} among {count}")),
            Some(Some((_, other))) => Some(format!("rank {rank} has come already, from {other}")),
            Some(free) => {
                *free = Some((stream, host));
                return;
            }
        }
    };
    let _ = send(&mut stream, &Message::Refused { why: why.unwrap_or_default() });
}
