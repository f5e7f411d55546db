//! Processes that train one model together: who they are, and whether all of them are still there.
//!
//! Started by `torchrun`, `srun` or `mpirun`, whose variables say which rank a process is ([`Place`]). Beside what devices
//! exchange among themselves, every process keeps one TCP connection to rank 0 ([`Peers`]): a device that waits for a rank that
//! is gone waits for ever, and only another channel can say so. A process that is killed closes its connection,
//! a node that goes down stops answering, and a rank that waits where the others do not is told by all of them waiting
//! at once. Whatever it is, all ranks hear of it within a minute, with the rank, its host and the cause.

mod hub;
mod place;
mod wire;

pub use place::{Launcher, Place, per_node, world_size};
pub use wire::End;

use crate::error::{Error, Result};
use crate::files;
use hub::Hub;
use serde_bytes::ByteBuf;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::{Address, Message, receive, send};

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// For all ranks to come.
    pub start: Duration,
    /// Between two signs of life.
    pub beat: Duration,
    /// Without a sign of life, until a rank counts as gone.
    pub silence: Duration,
    /// While all ranks wait for each other and nothing changes, until that counts as an error.
    pub standstill: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { start: seconds(600), beat: seconds(2), silence: seconds(20), standstill: seconds(40) }
    }
}

/// What is called, once and on a thread of its own, when the run cannot go on: gives the status with which the process ends once
/// the others have heard. Where there is none, every wait of this process for others gives the same as an error.
pub type OnEnd = Box<dyn Fn(&End) -> Option<i32> + Send + Sync>;

/// What this process knows of the others, shared by its threads.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    on_end: OnEnd,
}

#[derive(Default)]
struct State {
    /// What a meeting brought, by its number.
    met: Option<(u64, Vec<Vec<u8>>)>,
    /// The first cause: what comes after follows from it.
    cause: Option<End>,
    /// The same, once it is told.
    ended: Option<End>,
    /// All ranks are done: nothing is an error any more.
    closed: bool,
    /// How many of its waits for its device, or for others, this rank is in: one may be inside another.
    waiting: usize,
    /// What this rank has done together with others so far, counted.
    exchanges: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run cannot go on; the first cause is the one that is told; `before` has others hear of it.
    fn end(&self, end: End, before: impl FnOnce(&End)) {
        let mut state = self.lock();
        if state.closed || state.cause.is_some() {
            return;
        }
        state.cause = Some(end.clone());
        drop(state);
        let status = (self.on_end)(&end);
        before(&end);
        if let Some(status) = status {
            // SAFETY: ends the process at once. What `exit` would do first, of a driver whose work is stuck, might not return.
            unsafe { libc::_exit(status) }
        }
        self.lock().ended = Some(end);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// What meeting `number` brought.
    fn wait_for(&self, number: u64) -> Result<Vec<Vec<u8>>> {
        let mut state = self.lock();
        loop {
            // What all had brought counts, whatever came after.
            if state.met.as_ref().is_some_and(|(met, _)| *met == number)
                && let Some((_, all)) = state.met.take()
            {
                return Ok(all);
            }
            if let Some(end) = &state.ended {
                return Err(Error::Failed(end.to_string()));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The sign of life that is sent.
    fn beat(&self) -> Message {
        let state = self.lock();
        Message::Beat { waiting: state.waiting > 0, exchanges: state.exchanges }
    }
}

/// The other processes of a run. Dropped without [`Peers::finish`], the others hear that this rank ended.
pub struct Peers {
    place: Place,
    shared: Arc<Shared>,
    role: Role,
    meetings: std::sync::atomic::AtomicU64,
}

enum Role {
    /// Rank 0, with the file that says where it is.
    Hub(Arc<Hub>, PathBuf),
    /// Any other, with its connection to rank 0.
    Spoke(Arc<Mutex<TcpStream>>),
}

/// The name of this machine.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().into() }
}

impl Peers {
    /// Finds the other ranks by the file at `address`, which rank 0 writes there and which all of them can read. `token` names
    /// what is to be trained: ranks of another run, or with other options, are refused. Returns when all are there.
    ///
    /// # Errors
    /// [`Error::Failed`]: a rank does not come in time, or has another token; rank 0 cannot write the file or be reached.
    pub fn join(place: Place, address: &Path, token: &str, timing: Timing, on_end: OnEnd) -> Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), on_end });
        let role = if place.rank == 0 {
            let listener = TcpListener::bind("0.0.0.0:0")
                .map_err(|e| Error::Failed(format!("rank 0 cannot listen for the other ranks: {e}")))?;
            let port = listener.local_addr().map_err(|e| Error::Failed(e.to_string()))?.port();
            let mut hosts = vec![host()];
            // torchrun says by which name the others reach the node of rank 0.
            hosts.extend(place.master.clone());
            let text = serde_json::to_string(&Address { hosts, port, token: token.into() });
            files::write_whole(address, text.map_err(|e| Error::Failed(e.to_string()))?.as_bytes())?;
            let hub = Hub::gather(&listener, &place, token, timing, shared.clone());
            if hub.is_err() {
                let _ = std::fs::remove_file(address);
            }
            Role::Hub(hub?, address.to_owned())
        } else {
            Role::Spoke(reach(&place, address, token, timing, &shared)?)
        };
        Ok(Self { place, shared, role, meetings: 0.into() })
    }

    /// Which of the ranks this is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What every rank brings, in their order; waits for all of them.
    ///
    /// # Errors
    /// The run cannot go on.
    pub fn exchange(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.meet(own, false)
    }

    /// A meeting; after the last, connections that close mean nothing.
    fn meet(&self, own: &[u8], last: bool) -> Result<Vec<Vec<u8>>> {
        // With room for what the others bring: little, where one of them brings much.
        if own.len() > wire::LONGEST as usize / 2 {
            let len = own.len();
            return Err(Error::Failed(format!(
                "{len} bytes are more than ranks can tell each other; please report this"
            )));
        }
        let number = self.meetings.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let _waits = self.waits();
        match &self.role {
            Role::Hub(hub, _) => hub.bring(0, number, own.to_vec(), last),
            // Where the connection is gone the reader says why.
            Role::Spoke(stream) => {
                let _ = send(&mut lock(stream), &Message::Bring { number, bytes: own.to_vec().into(), last });
            }
        }
        self.shared.wait_for(number)
    }

    /// What rank 0 brings, to all; the others bring nothing.
    ///
    /// # Errors
    /// As for [`Peers::exchange`].
    pub fn from_first(&self, own: &[u8]) -> Result<Vec<u8>> {
        let all = self.exchange(if self.place.rank == 0 { own } else { &[] })?;
        all.into_iter()
            .next()
            .ok_or_else(|| Error::Failed("rank 0 brought nothing; please report this".into()))
    }

    /// True on every rank where it is true on any.
    ///
    /// # Errors
    /// As for [`Peers::exchange`].
    pub fn any(&self, own: bool) -> Result<bool> {
        Ok(self.exchange(&[u8::from(own)])?.iter().any(|bytes| bytes.first() == Some(&1)))
    }

    /// This rank waits for its device, or for others, until what this gives is dropped.
    pub fn waits(&self) -> Waits<'_> {
        self.shared.lock().waiting += 1;
        Waits(&self.shared)
    }

    /// This rank has queued something that all ranks do together.
    pub fn counts(&self) {
        self.shared.lock().exchanges += 1;
    }

    /// Tells the others that this rank cannot go on, and why.
    pub fn fail(&self, cause: &str) {
        let end = End { rank: self.place.rank, host: host(), cause: cause.into(), unheard: false };
        match &self.role {
            Role::Hub(hub, _) => hub.end(end),
            Role::Spoke(stream) => {
                let _ = send(&mut lock(stream), &Message::Failed { cause: cause.into() });
                // Rank 0 tells everybody, this rank too.
                let deadline = Instant::now() + Duration::from_secs(5);
                let mut state = self.shared.lock();
                while !state.closed && state.ended.is_none() && Instant::now() < deadline {
                    let wait = self.shared.changed.wait_timeout(state, Duration::from_millis(100));
                    state = wait.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Waits for all ranks to be done, after which none needs the others.
    ///
    /// # Errors
    /// As for [`Peers::exchange`].
    pub fn finish(&self) -> Result<()> {
        self.meet(&[], true).map(drop)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        match &self.role {
            Role::Hub(hub, address) => {
                let _ = std::fs::remove_file(address);
                hub.hang_up();
            }
            Role::Spoke(stream) => {
                let _ = lock(stream).shutdown(std::net::Shutdown::Both);
            }
        }
        self.shared.close();
    }
}

/// While it lives, its rank counts as waiting.
pub struct Waits<'a>(&'a Shared);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

fn lock(stream: &Mutex<TcpStream>) -> MutexGuard<'_, TcpStream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects to rank 0 and starts the threads that listen to it and show that this rank lives.
fn reach(
    place: &Place,
    address: &Path,
    token: &str,
    timing: Timing,
    shared: &Arc<Shared>,
) -> Result<Arc<Mutex<TcpStream>>> {
    let deadline = Instant::now() + timing.start;
    let failed = |why: String| Error::Failed(format!("rank {} on {}: {why}", place.rank, host()));
    let mut last = format!("{} does not appear there", address.display());
    let (mut stream, first) = loop {
        match call(place, address, token, timing) {
            Ok(Some(connected)) => break connected,
            Ok(None) => {}
            Err(why) => last = why,
        }
        if Instant::now() > deadline {
            return Err(failed(format!(
                "rank 0 cannot be reached within {} s: {last}; all ranks need the run's folder on one file system, and a network \
                 on which they reach each other",
                timing.start.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let shared_reader = shared.clone();
    let gone = move |cause: &str| End { rank: 0, host: first.clone(), cause: cause.into(), unheard: true };
    let writer = stream.try_clone().map_err(|e| failed(e.to_string()))?;
    let writer = Arc::new(Mutex::new(writer));
    let beats = Arc::downgrade(&writer);
    let shared_beats = shared.clone();
    spawn("beats", move || {
        while let Some(stream) = beats.upgrade() {
            if send(&mut lock(&stream), &shared_beats.beat()).is_err() {
                break;
            }
            drop(stream);
            std::thread::sleep(timing.beat);
        }
    })?;
    spawn("rank 0", move || {
        loop {
            match receive(&mut stream) {
                Ok(Message::All { number, bytes, last }) => {
                    if last {
                        shared_reader.close();
                    }
                    let all = bytes.into_iter().map(ByteBuf::into_vec).collect();
                    shared_reader.lock().met = Some((number, all));
                    shared_reader.changed.notify_all();
                }
                Ok(Message::End(end)) => return shared_reader.end(end, |_| {}),
                Ok(_) => {}
                Err(error) => return shared_reader.end(gone(&wire::why(&error, timing)), |_| {}),
            }
        }
    })?;
    Ok(writer)
}

/// One try to reach rank 0: `None` where its file is not there yet. With the name of its host.
fn call(
    place: &Place,
    address: &Path,
    token: &str,
    timing: Timing,
) -> std::result::Result<Option<(TcpStream, String)>, String> {
    let Ok(text) = std::fs::read_to_string(address) else { return Ok(None) };
    let found: Address = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", address.display()))?;
    let name = found.hosts.first().cloned().unwrap_or_default();
    let mut hosts = found.hosts;
    if name == host() {
        hosts.insert(0, "127.0.0.1".into());
    }
    let mut last = String::from("no address");
    for host_name in hosts {
        let addresses = match (host_name.as_str(), found.port).to_socket_addrs() {
            Ok(addresses) => addresses,
            Err(e) => {
                last = format!("{host_name}: {e}");
                continue;
            }
        };
        for address in addresses {
            let connected = TcpStream::connect_timeout(&address, Duration::from_secs(5));
            let mut stream = match connected {
                Ok(stream) => stream,
                Err(e) => {
                    last = format!("{host_name} ({address}): {e}");
                    continue;
                }
            };
            let hello =
                Message::Hello { rank: place.rank, count: place.count, host: host(), token: token.into() };
            let _ = stream.set_nodelay(true);
            let _ = stream.set_read_timeout(Some(timing.start.max(timing.silence)));
            let answer = send(&mut stream, &hello).and_then(|()| receive(&mut stream));
            match answer {
                Ok(Message::Welcome) => {
                    let _ = stream.set_read_timeout(Some(timing.silence));
                    return Ok(Some((stream, name)));
                }
                Ok(Message::Refused { why }) => last = format!("rank 0 on {name}: {why}"),
                Ok(other) => last = format!("{address} answers {other:?}"),
                Err(e) => last = format!("{host_name} ({address}): {e}"),
            }
        }
    }
    Err(last)
}

/// A thread of this run; the name shows in debuggers.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map(drop).map_err(|e| Error::Failed(format!("cannot start a thread: {e}")))
}

#[cfg(test)]
mod tests;
