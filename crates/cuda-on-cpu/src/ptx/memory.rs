//! Memory as a launch sees it: bounds, alignment, what was written, who else touches it; and how much is moved.

use super::{LANES, Lanes, Variable};
use std::ops::Add;

/// What a launch moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions of warps.
    pub instructions: u64,
    /// Of them, those of the block that has most.
    pub longest: u64,
    /// Blocks.
    pub blocks: u64,
    /// Bytes that lanes load from global memory, without regard to caches.
    pub loaded: u64,
    /// Bytes that lanes store to global memory.
    pub stored: u64,
    /// Sectors of 32 bytes that loads and stores of global memory touch, counted by instruction of a warp.
    pub sectors: u64,
    /// Passes over shared memory that loads and stores need.
    pub passes: u64,
    /// Passes that they would need without two lanes in the same bank.
    pub fewest_passes: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, o: Self) -> Self {
        Self {
            instructions: self.instructions + o.instructions,
            longest: self.longest.max(o.longest),
            blocks: self.blocks + o.blocks,
            loaded: self.loaded + o.loaded,
            stored: self.stored + o.stored,
            sectors: self.sectors + o.sectors,
            passes: self.passes + o.passes,
            fewest_passes: self.fewest_passes + o.fewest_passes,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Load,
    Store,
    Atomic,
}

/// A thread between two barriers: its block, the barriers behind it, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Who {
    pub block: u32,
    pub epoch: u32,
    pub thread: u16,
}

impl Who {
    /// Whether nothing orders what two threads do.
    fn beside(self, other: Self) -> bool {
        self.block != other.block || (self.epoch == other.epoch && self.thread != other.thread)
    }
}

/// Who touched a place last.
#[derive(Debug, Clone, Copy, Default)]
struct Trace {
    writer: Option<Who>,
    reader: Option<Who>,
    /// More than one thread has read it since the last barrier.
    readers: bool,
    /// More than one block has read it.
    blocks: bool,
    /// The last write was an atomic one.
    atomic: bool,
}

impl Trace {
    /// Notes an access and reports one that nothing orders with it. A store that leaves what is there `same` harms
    /// nobody: flags are set so.
    fn touch(&mut self, kind: Kind, who: Who, same: bool) -> Result<(), String> {
        let Who { block, thread, .. } = who;
        let told = |what: &str, other: Who| {
            let (other, place) = match other {
                Who { block: b, thread: t, .. } if b != block => {
                    (format!("thread {t} of block {b}"), format!(" of block {block}"))
                }
                Who { thread: t, .. } if t != thread => (format!("thread {t}"), String::new()),
                _ => ("several threads".to_owned(), String::new()),
            };
            Err(format!("{what} {other} and thread {thread}{place}, with nothing between"))
        };
        if let Some(writer) = self.writer.filter(|w| w.beside(who) && !(self.atomic && kind == Kind::Atomic))
        {
            if same {
                return Ok(());
            }
            return told(if kind == Kind::Load { "written and read by" } else { "written by" }, writer);
        }
        if kind == Kind::Load {
            if let Some(reader) = self.reader {
                self.readers = reader.beside(who) || (self.readers && same_epoch(reader, who));
                self.blocks |= reader.block != who.block;
            }
            self.reader = Some(who);
            return Ok(());
        }
        if self.blocks && !same {
            return Err(format!("read by several blocks and written by thread {thread} of block {block}"));
        }
        let beside = |r: &Who| r.beside(who) || (self.readers && same_epoch(*r, who));
        if let Some(reader) = self.reader.filter(beside) {
            if same {
                return Ok(());
            }
            return told("read and written by", reader);
        }
        (self.writer, self.atomic) = (Some(who), kind == Kind::Atomic);
        Ok(())
    }
}

fn same_epoch(a: Who, b: Who) -> bool {
    a.block == b.block && a.epoch == b.epoch
}

fn aligned(place: &str, address: u64, bytes: usize) -> Result<(), String> {
    if !address.is_multiple_of(bytes as u64) {
        return Err(format!("{place}{address:#x} is no multiple of {bytes} bytes"));
    }
    Ok(())
}

/// Bytes of one place of a trace of shared memory, and of global memory.
const SHARED_PLACE: usize = 4;
const GLOBAL_PLACE: usize = 2;

/// Device memory.
pub struct Global<'a> {
    live: &'a [(u64, usize)],
    /// The block of memory that was found last.
    last: usize,
    /// Of each block of memory, once it is touched.
    traces: Vec<Vec<Trace>>,
    block: u32,
    pub counts: Counts,
}

/// Memory from here on is not traced: it is reserved, and hardly any of it is there.
const TRACED: usize = 64 << 20;

impl<'a> Global<'a> {
    /// # Safety
    /// `live` must be memory of this process that nothing else uses while this lives.
    pub unsafe fn new(live: &'a [(u64, usize)]) -> Self {
        Self { live, last: 0, traces: vec![vec![]; live.len()], block: 0, counts: Counts::default() }
    }

    pub fn enter(&mut self, block: u32) {
        self.block = block;
    }

    /// Whether `bytes` bytes lie in live memory, and aligned.
    pub fn inside(&mut self, address: u64, bytes: usize) -> Result<(), String> {
        let holds =
            |&(start, len): &(u64, usize)| address >= start && address + bytes as u64 <= start + len as u64;
        if !self.live.get(self.last).is_some_and(holds) {
            self.last = self.live.partition_point(|&(start, _)| start <= address).wrapping_sub(1);
            if !self.live.get(self.last).is_some_and(holds) {
                return Err(format!("{bytes} bytes at {address:#x} do not lie in live memory"));
            }
        }
        aligned("", address, bytes)
    }

    /// Notes one lane's access, which [`Self::inside`] has just found inside.
    pub fn touch(
        &mut self,
        address: u64,
        bytes: usize,
        kind: Kind,
        mut who: Who,
        same: bool,
    ) -> Result<(), String> {
        let (start, len) = self.live[self.last];
        if len >= TRACED {
            return Ok(());
        }
        who.block = self.block;
        let traces = &mut self.traces[self.last];
        if traces.is_empty() {
            traces.resize(len.div_ceil(GLOBAL_PLACE), Trace::default());
        }
        let first = (address - start) as usize / GLOBAL_PLACE;
        for (i, trace) in traces[first..first + bytes / GLOBAL_PLACE].iter_mut().enumerate() {
            trace.touch(kind, who, same).map_err(|told| {
                format!("byte {} of {len} at {start:#x}: {told}", (first + i) * GLOBAL_PLACE)
            })?;
        }
        Ok(())
    }

    /// Counts an access of `bytes` bytes by each lane of `mask`.
    pub fn count(&mut self, at: &Lanes, mask: u32, bytes: usize, kind: Kind) {
        let mut sectors = [0u64; LANES];
        let mut n = 0;
        for lane in super::lanes(mask) {
            let sector = at[lane] / 32;
            // Neighbours are mostly lanes of one sector.
            if n == 0 || (sectors[n - 1] != sector && !sectors[..n].contains(&sector)) {
                sectors[n] = sector;
                n += 1;
            }
        }
        let moved = u64::from(mask.count_ones()) * bytes as u64;
        match kind {
            Kind::Load => self.counts.loaded += moved,
            _ => self.counts.stored += moved,
        }
        self.counts.sectors += n as u64;
    }

    /// The value of `bytes` bytes at an address.
    ///
    /// # Safety
    /// [`Self::inside`] must have found it to lie in live memory.
    pub unsafe fn load(&self, address: u64, bytes: usize) -> u64 {
        let mut value = [0; 8];
        // SAFETY: the caller has had `address .. address + bytes` checked; at most eight bytes are copied.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, value.as_mut_ptr(), bytes.min(8)) };
        u64::from_le_bytes(value)
    }

    /// Writes the low `bytes` bytes of a value.
    ///
    /// # Safety
    /// As [`Self::load`].
    pub unsafe fn store(&mut self, address: u64, bytes: usize, value: u64) {
        // SAFETY: the caller has had `address .. address + bytes` checked; at most eight bytes are copied.
        unsafe {
            std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), address as *mut u8, bytes.min(8));
        }
    }
}

/// The most words of one bank among `words`, of which there are at most 32; the same word counts once.
fn passes(words: impl Iterator<Item = u64> + Clone) -> u32 {
    let mut first = [u64::MAX; LANES];
    let mut apart = false;
    let mut most = 0;
    for word in words.clone() {
        let bank = &mut first[word as usize % LANES];
        apart |= *bank != u64::MAX && *bank != word;
        (*bank, most) = (word, 1);
    }
    if apart {
        let mut all: Vec<u64> = words.collect();
        all.sort_unstable();
        all.dedup();
        let mut banks = [0; LANES];
        all.iter().for_each(|word| banks[*word as usize % LANES] += 1);
        most = banks.into_iter().max().unwrap_or(0);
    }
    most
}

/// Shared memory of a block.
pub struct Shared {
    bytes: Vec<u8>,
    traces: Vec<Trace>,
    /// Variables by offset; the last one is dynamic memory.
    variables: Vec<Variable>,
    last: usize,
    pub counts: Counts,
}

impl Shared {
    pub fn new(variables: &[Variable], dynamic: u32, dynamic_bytes: u32) -> Self {
        let mut variables = variables.to_vec();
        variables.push(Variable {
            name: "dynamic shared memory".into(),
            offset: dynamic,
            bytes: dynamic_bytes,
        });
        let bytes = (dynamic + dynamic_bytes) as usize;
        let traces = vec![Trace::default(); bytes.div_ceil(SHARED_PLACE)];
        Self { bytes: vec![0; bytes], traces, variables, last: 0, counts: Counts::default() }
    }

    /// For the next block: nothing is written yet.
    pub fn clear(&mut self) {
        self.traces.fill(Trace::default());
        self.bytes.fill(0xcd);
    }

    /// Whether `bytes` bytes lie in one variable, and aligned.
    pub fn inside(&mut self, address: u64, bytes: usize) -> Result<(), String> {
        let end = address + bytes as u64;
        let holds = |v: &Variable| address >= u64::from(v.offset) && end <= u64::from(v.offset + v.bytes);
        if !self.variables.get(self.last).is_some_and(holds) {
            let found = self.variables.iter().position(holds);
            self.last = found.ok_or_else(|| {
                let near = self.variables.iter().rev().find(|v| u64::from(v.offset) <= address);
                let name = near.map_or("any shared variable", |v| v.name.as_str());
                format!("{bytes} bytes at shared {address:#x} lie outside {name}")
            })?;
        }
        aligned("shared ", address, bytes)
    }

    /// Notes one lane's access, which [`Self::inside`] has just found inside.
    pub fn touch(
        &mut self,
        address: u64,
        bytes: usize,
        kind: Kind,
        who: Who,
        same: bool,
    ) -> Result<(), String> {
        let first = address as usize / SHARED_PLACE;
        let Variable { name, offset, .. } = &self.variables[self.last];
        for (i, trace) in self.traces[first..first + bytes.div_ceil(SHARED_PLACE)].iter_mut().enumerate() {
            let at = (first + i) * SHARED_PLACE - *offset as usize;
            if kind != Kind::Store && trace.writer.is_none() {
                return Err(format!("byte {at} of {name}: read before it was written"));
            }
            trace.touch(kind, who, same).map_err(|told| format!("byte {at} of {name}: {told}"))?;
        }
        Ok(())
    }

    /// Counts the passes of an access of `bytes` bytes by each lane of `mask`.
    pub fn count(&mut self, at: &Lanes, mask: u32, bytes: usize) {
        // A pass serves 128 bytes: lanes of 8 bytes go by halves of a warp, of 16 by quarters.
        let together = (LANES * 4 / bytes.max(4)).min(LANES);
        for part in (0..LANES).step_by(together) {
            let words = (part..part + together)
                .filter(|lane| mask >> lane & 1 == 1)
                .flat_map(|lane| at[lane] / 4..(at[lane] + bytes.max(4) as u64) / 4);
            let passes = passes(words);
            self.counts.passes += u64::from(passes);
            self.counts.fewest_passes += u64::from(passes > 0);
        }
    }

    /// The value of `bytes` bytes at an address that [`Self::inside`] found inside.
    pub fn load(&self, address: u64, bytes: usize) -> u64 {
        let (mut value, at) = ([0; 8], address as usize);
        value[..bytes].copy_from_slice(&self.bytes[at..at + bytes]);
        u64::from_le_bytes(value)
    }

    /// Writes the low `bytes` bytes of a value at an address that [`Self::inside`] found inside.
    pub fn store(&mut self, address: u64, bytes: usize, value: u64) {
        let at = address as usize;
        self.bytes[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }
}
