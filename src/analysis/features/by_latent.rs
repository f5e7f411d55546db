//! Codes by latent, as tests of labels and histograms want them: in runs that are each sorted by latent, in memory where
//! they fit, else in a temporary file.

use crate::analysis::spill::{Room, SpillFile, ranges};
use crate::error::{Error, Result};
use crate::interrupt::check_flag;
use crate::text::thousands;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// Words of an entry while it is gathered: latent, tag, the bits of the value.
const GATHERED: usize = 3;
/// Words of an entry that has its place by latent: tag, the bits of the value.
const PLACED: usize = 2;
/// Entries that there is memory for at first.
const FEW: usize = 1 << 16;
/// Bytes of entries that are gathered for a run, at most.
const RUN_BYTES: u64 = 64 << 20;

/// Takes entries in any order.
#[derive(Debug)]
pub struct Collect {
    n_latents: usize,
    room: Room,
    /// Entries of a run.
    limit: usize,
    /// Those of the next run.
    words: Vec<u32>,
    /// Entries of each latent (M).
    counts: Vec<u64>,
    runs: Vec<Run>,
    /// Bytes that runs in memory take.
    held: u64,
    file: Option<SpillFile>,
}

/// Entries sorted by latent.
#[derive(Debug)]
enum Run {
    /// Where each latent begins, the number of entries at the end (M + 1), and the entries.
    Memory { index: Vec<u64>, words: Vec<u32> },
    /// The same in the file, from this byte on.
    Disk(u64),
}

impl Collect {
    /// Nothing yet, of `n_latents` latents.
    pub fn new(n_latents: usize, room: Room) -> Self {
        let limit = (room.memory / 4).min(RUN_BYTES) as usize / (4 * GATHERED);
        Self {
            n_latents,
            room,
            // The index of a run is not to be longer than the run itself.
            limit: limit.max(n_latents),
            words: vec![],
            counts: vec![0; n_latents],
            runs: vec![],
            held: 0,
            file: None,
        }
    }

    /// Adds an activation of `latent` with a tag that says whose it is.
    ///
    /// # Errors
    /// Memory that the system refuses; what the disk refuses where entries are spilled.
    pub fn push(&mut self, latent: u32, tag: u32, value: f32) -> Result<()> {
        if self.words.len() >= GATHERED * self.limit {
            self.end_run()?;
        }
        if self.words.len() + GATHERED > self.words.capacity() {
            let n = self.words.len() / GATHERED;
            reserve(&mut self.words, GATHERED * (2 * n).max(FEW).min(self.limit))?;
        }
        self.counts[latent as usize] += 1;
        self.words.extend_from_slice(&[latent, tag, value.to_bits()]);
        Ok(())
    }

    /// Sorts the entries of a run by latent; its index.
    fn sort(&mut self) -> Vec<u64> {
        let entries: &mut [[u32; GATHERED]] = bytemuck::cast_slice_mut(&mut self.words);
        entries.par_sort_unstable();
        let mut index = vec![0u64; self.n_latents + 1];
        for [latent, ..] in entries.iter() {
            index[*latent as usize + 1] += 1;
        }
        for j in 0..self.n_latents {
            index[j + 1] += index[j];
        }
        // The latent is known by the place from here on.
        let n = entries.len();
        for i in 0..n {
            self.words.copy_within(GATHERED * i + 1..GATHERED * (i + 1), PLACED * i);
        }
        self.words.truncate(PLACED * n);
        index
    }

    /// Keeps the run in memory, or writes it to the disk with those before it.
    fn end_run(&mut self) -> Result<()> {
        let index = self.sort();
        let bytes = (8 * index.len() + 4 * self.words.len()) as u64;
        let gathering = 4 * self.words.capacity() as u64;
        if self.file.is_none() && self.held + bytes + gathering <= self.room.memory {
            let mut words = vec![];
            reserve(&mut words, self.words.len())?;
            words.extend_from_slice(&self.words);
            self.runs.push(Run::Memory { index, words });
            self.held += bytes;
        } else {
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(self.room.file()?),
            };
            for run in &mut self.runs {
                if let Run::Memory { index, words } = run {
                    *run = Run::Disk(write_run(file, index, words)?);
                }
            }
            self.runs.push(Run::Disk(write_run(file, &index, &self.words)?));
            self.held = 0;
        }
        self.words.clear();
        Ok(())
    }

    /// All entries by latent.
    ///
    /// # Errors
    /// As [`Collect::push`].
    pub fn finish(mut self) -> Result<ByLatent> {
        if !self.words.is_empty() {
            self.end_run()?;
        }
        let Self { counts, runs, file, held, room, .. } = self;
        Ok(ByLatent { counts, runs, file, memory: room.memory.saturating_sub(held) })
    }
}

/// Memory for `n` words.
fn reserve(words: &mut Vec<u32>, n: usize) -> Result<()> {
    words.try_reserve_exact(n.saturating_sub(words.len())).map_err(|_| {
        let n = thousands(n as u64 / PLACED as u64);
        Error::Failed(format!("{n} codes do not fit in memory; lower --memory, or give fewer rows"))
    })
}

fn write_run(file: &mut SpillFile, index: &[u64], words: &[u32]) -> Result<u64> {
    let at = file.append(bytemuck::cast_slice(index))?;
    file.append(words)?;
    Ok(at)
}

/// Codes by latent: each entry a tag and an activation above 0.
#[derive(Debug)]
pub struct ByLatent {
    /// Entries of each latent (M).
    counts: Vec<u64>,
    runs: Vec<Run>,
    file: Option<SpillFile>,
    /// Bytes of memory for entries that are read, and for what works on them.
    memory: u64,
}

impl ByLatent {
    /// Number of latents, M.
    pub fn n_latents(&self) -> usize {
        self.counts.len()
    }

    /// Number of entries.
    pub fn n_entries(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All latents, in ranges whose entries fit in memory together, with `work` bytes more for each; at least one latent
    /// each.
    pub fn ranges(&self, work: u64) -> Vec<Range<usize>> {
        let read = if self.file.is_some() { 4 * PLACED as u64 } else { 0 };
        ranges(&self.counts, self.memory.checked_div(read + work).unwrap_or(u64::MAX))
    }

    /// The entries of one of [`ByLatent::ranges`].
    ///
    /// # Errors
    /// Memory that the system refuses; what the disk refuses.
    pub fn read(&self, latents: Range<usize>) -> Result<Entries<'_>> {
        let parts = self.runs.iter().map(|run| match (run, &self.file) {
            (Run::Disk(at), Some(file)) => self.read_run(file, *at, &latents),
            (Run::Disk(_), None) => {
                Err(Error::Failed("codes are in a file that was never made; please report this".into()))
            }
            (Run::Memory { index, words }, _) => {
                let index = &index[latents.start..=latents.end];
                let entries = PLACED * index[0] as usize..PLACED * index[latents.len()] as usize;
                Ok(Part { index: Cow::Borrowed(index), words: Cow::Borrowed(&words[entries]) })
            }
        });
        Ok(Entries { first: latents.start, parts: parts.collect::<Result<_>>()? })
    }

    fn read_run(&self, file: &SpillFile, run: u64, latents: &Range<usize>) -> Result<Part<'static>> {
        let mut index = vec![0u64; latents.len() + 1];
        file.read(run + 8 * latents.start as u64, bytemuck::cast_slice_mut(&mut index))?;
        let n = PLACED * (index[latents.len()] - index[0]) as usize;
        let mut words = vec![];
        reserve(&mut words, n)?;
        words.resize(n, 0);
        let entries = run + 8 * (self.n_latents() as u64 + 1);
        file.read(entries + 4 * PLACED as u64 * index[0], &mut words)?;
        Ok(Part { index: Cow::Owned(index), words: Cow::Owned(words) })
    }

    /// Gives `take` every activation.
    ///
    /// # Errors
    /// As [`ByLatent::read`]; [`Error::Interrupted`] once `stop` is set.
    pub fn each_value(&self, stop: &AtomicBool, mut take: impl FnMut(f32)) -> Result<()> {
        for latents in self.ranges(0) {
            check_flag(stop)?;
            let entries = self.read(latents)?;
            let values = entries.parts.iter().flat_map(|part| part.words.chunks_exact(PLACED));
            values.for_each(|entry| take(f32::from_bits(entry[1])));
        }
        Ok(())
    }
}

/// The entries of a run for some latents.
#[derive(Debug)]
struct Part<'a> {
    /// Where each of the latents begins in the run, and where the last ends.
    index: Cow<'a, [u64]>,
    /// The entries.
    words: Cow<'a, [u32]>,
}

/// Entries of some latents.
#[derive(Debug)]
pub struct Entries<'a> {
    first: usize,
    parts: Vec<Part<'a>>,
}

impl Entries<'_> {
    /// Tags and activations of latent `j`, in no order that means anything but always the same.
    ///
    /// # Panics
    /// If `j` is not one of the latents.
    pub fn latent(&self, j: usize) -> impl Iterator<Item = (u32, f32)> {
        let at = j - self.first;
        self.parts.iter().flat_map(move |part| {
            let place = |i: usize| PLACED * (part.index[i] - part.index[0]) as usize;
            let entries = part.words[place(at)..place(at + 1)].chunks_exact(PLACED);
            entries.map(|entry| (entry[0], f32::from_bits(entry[1])))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Every latent's entries, sorted; how many runs and ranges there were; and whether they went to the disk.
    type Seen = (Vec<Vec<(u32, u32)>>, [usize; 2], bool);

    /// Entries by way of so many bytes of memory, and of ranges with so many bytes of work for each.
    fn gathered(entries: &[(u32, u32, f32)], n_latents: usize, (memory, work): (u64, u64)) -> Seen {
        let mut collect = Collect::new(n_latents, Room::new(Some(memory), Path::new("."), []));
        entries.iter().for_each(|&(latent, tag, value)| collect.push(latent, tag, value).unwrap());
        let codes = collect.finish().unwrap();
        assert_eq!(codes.n_entries(), entries.len() as u64);
        let mut out = vec![];
        let ranges = codes.ranges(work);
        for latents in ranges.clone() {
            let read = codes.read(latents.clone()).unwrap();
            for j in latents {
                let mut of: Vec<(u32, u32)> = read.latent(j).map(|(tag, v)| (tag, v.to_bits())).collect();
                of.sort_unstable();
                out.push(of);
            }
        }
        let mut n = 0;
        codes.each_value(&AtomicBool::new(false), |_| n += 1).unwrap();
        assert_eq!(n, entries.len());
        let on_disk = |run: &Run| matches!(run, Run::Disk(_));
        assert!(codes.runs.iter().all(|run| on_disk(run) == codes.file.is_some()));
        (out, [codes.runs.len(), ranges.len()], codes.file.is_some())
    }

    #[test]
    fn entries_are_the_same_whether_they_fit_or_not() {
        let n_latents = 7;
        let entry = |i: u32| (i.wrapping_mul(2_654_435_761) % 6, i, 0.5 + i as f32);
        for n in [0, 1, 6, 7, 8, 700, 70_001] {
            let entries: Vec<(u32, u32, f32)> = (0..n).map(entry).collect();
            let mut want = vec![vec![]; n_latents];
            entries.iter().for_each(|(latent, tag, v)| want[*latent as usize].push((*tag, v.to_bits())));
            // Runs of 7, 64, 1,000 and all entries: on the disk, on the disk, in memory as long as they fit, in memory.
            for (memory, run) in [(0, 7), (48 * 64, 64), (48 * 1000, 1000), (u64::MAX, usize::MAX)] {
                let (got, [runs, ranges], spilled) = gathered(&entries, n_latents, (memory, 8));
                assert!(got == want, "{n} entries in {memory} bytes");
                let n = n as usize;
                assert_eq!(runs, n.div_ceil(run), "{n} entries in {memory} bytes");
                // 12 bytes in the run at hand and 8 in those before, with 64 for the index of each.
                let held = 12 * run.min(1 << 20) + n * 8 + 64 * runs;
                assert_eq!(spilled, n > 0 && held as u64 > memory, "{n} entries in {memory} bytes");
                let several = spilled && n as u64 > (memory / 16).max(1);
                assert_eq!(ranges > 1, several, "{ranges} ranges of {n} entries in {memory} bytes");
            }
        }
    }
}
