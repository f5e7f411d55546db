//! Rows of files that do not fit into memory: read in place, and block by block into memory where training asks for it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

use rayon::prelude::*;

use super::embeddings::{Embeddings, Skipped};
use super::first_pass::{self, FirstPass, Seen};
use super::in_place::{At, Files, Opened, Spare, blocks, no_room, stamp};
use super::load::{
    Judge, Located, assemble, check_ids, check_memory, common_width, dtype, groups, holds_no_rows, locate,
    n_rows, see, sources,
};
use super::reading::Plan;
use super::stream::DataFiles;
use super::{BadRows, LoadOptions};
use crate::error::{Error, Result};
use crate::rows::{Dtype, Resident, RowIndex, RowSource, SourceFile, TOGETHER, Values};
use crate::text::{bytes, thousands};

/// Most bytes of a block: enough for one read of a disk.
const MOST_BLOCK: usize = 4 << 20;
/// Fewest.
const LEAST_BLOCK: usize = 64 << 10;
/// Blocks that a window should have, so that it is a sample of the whole file.
const BLOCKS: usize = 512;
/// Most threads that wait for the disk.
const MOST_READERS: usize = 4;
/// Bytes that may be unpacked more than once.
const SMALL_CHUNK: usize = 16 << 20;
/// Rows whose values are part of the fingerprint.
const FINGERPRINT_ROWS: usize = 1024;

/// Rows of files, of which blocks are in memory.
#[derive(Clone)]
pub struct Streamed(Arc<Shared>);

struct Shared {
    files: Arc<Files>,
    held: RwLock<HashMap<u32, Arc<Resident>>>,
    /// Single rows that stay in memory, ascending, and their values.
    kept: RwLock<Option<(Vec<u32>, Resident)>>,
    /// Blocks that are on their way into memory, and who brings them.
    coming: Mutex<Option<(Vec<u32>, Coming)>>,
    spare: Arc<Spare>,
    /// Rows that may be in memory together.
    window: usize,
    /// Threads that wait for the disk, apart from those that compute; `None` where the system gives none.
    readers: OnceLock<Option<Arc<rayon::ThreadPool>>>,
}

/// What is left of rows after some were dropped.
pub(super) struct Fewer {
    pub rows: Streamed,
    /// A mark for each row as it was before.
    pub keep: Vec<bool>,
    pub files: Vec<SourceFile>,
}

/// Blocks that another thread reads.
type Coming = JoinHandle<Result<Vec<(u32, Resident)>>>;

/// The guarded value, also after a thread panicked with it: it is replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Opened { all, d_in, dtype, .. } = &*self.0.files.opened;
        write!(f, "Streamed({all} rows of {d_in} {dtype})")
    }
}

impl Embeddings {
    /// As [`Embeddings::load`], with rows in memory where they take at most `memory` bytes. Others stay in their files: they
    /// are read once to be checked, and then block by block as training asks for them, in at most that much memory.
    ///
    /// # Errors
    /// As [`Embeddings::load`].
    pub fn load_within(paths: &[PathBuf], options: &LoadOptions, memory: u64) -> Result<Self> {
        let mut embeddings = Self::open_within(paths, options, memory)?;
        embeddings.look_through(&[], vec![], &mut |_, _| {})?;
        Ok(embeddings)
    }

    /// As [`Embeddings::load_within`], but the values of rows that stay in their files are not looked at before
    /// [`Embeddings::look_through`]: there may be fewer rows then.
    ///
    /// # Errors
    /// As [`Embeddings::load`].
    pub(crate) fn open_within(paths: &[PathBuf], options: &LoadOptions, memory: u64) -> Result<Self> {
        let DataFiles { plans, warnings, .. } = DataFiles::open(paths, options)?;
        let first = plans[0].file.path.clone();
        let mut embeddings = within(plans, options.bad_rows, memory)?;
        embeddings.warn_of(warnings);
        if embeddings.n_rows() == 0 {
            return Err(holds_no_rows(&first, embeddings.skipped()));
        }
        Ok(embeddings)
    }
}

/// The rows of `plans`: in memory where they take at most `memory` bytes, else in their files, which nobody looked at.
pub(super) fn within(plans: Vec<Plan>, bad_rows: BadRows, memory: u64) -> Result<Embeddings> {
    // Without their places, which 100,000 of them are given once.
    let pieces = || plans.iter().flat_map(|plan| &plan.pieces).filter(|piece| piece.n_rows > 0);
    let size = pieces().map(|piece| piece.stored.dtype).reduce(Dtype::widest).map_or(0, Dtype::size);
    let n_rows = pieces().fold(0u64, |n, piece| n.saturating_add(piece.n_rows as u64));
    let bytes = common_width(&plans).saturating_mul(size as u64).saturating_mul(n_rows);
    if bytes <= memory { assemble(plans, bad_rows) } else { streamed(plans, bad_rows, memory) }
}

/// Rows that stay in their files; their ids are checked, and their values are not.
fn streamed(plans: Vec<Plan>, bad_rows: BadRows, memory: u64) -> Result<Embeddings> {
    let mut judge = Judge::new(bad_rows);
    let width = common_width(&plans);
    let pieces = locate(&plans, width)?;
    let (all, d_in, dtype) = (n_rows(&pieces)?, width as usize, dtype(&pieces));
    check_memory(&pieces, 0)?;
    let mut keep = vec![true; all];
    check_ids(&pieces, &mut keep, &mut judge)?;
    let index = RowIndex { pieces: sources(&plans, &pieces, &keep), ..groups(&pieces, 0..all, &keep) };
    let (blocks, window) = in_memory(&pieces, d_in.saturating_mul(dtype.size()), memory)?;
    let at = pieces.iter().map(Located::place_in_plans);
    let at = at.map(|(plan, piece, start)| At { plan: plan as u32, piece: piece as u32, start }).collect();
    drop(pieces);

    let stamps = plans.iter().map(stamp).collect::<Result<_>>()?;
    let opened = Opened { plans, pieces: at, stamps, d_in, dtype, all, bad_rows };
    let files = Files::new(Arc::new(opened), blocks, keep);
    Ok(Embeddings::of_files(Streamed::new(files, window), index, judge.skipped))
}

/// Blocks of rows of `row_bytes` bytes, and the rows of a window, where rows take at most `memory` bytes of memory: two
/// windows.
fn in_memory(pieces: &[Located<'_>], row_bytes: usize, memory: u64) -> Result<(Vec<usize>, usize)> {
    let row_bytes = row_bytes.max(1);
    let window_bytes = usize::try_from(memory / 2).unwrap_or(usize::MAX);
    // A window has some blocks, however small it is.
    let block_bytes = (window_bytes / BLOCKS).clamp(LEAST_BLOCK, MOST_BLOCK).min(window_bytes / 4);
    let window = (window_bytes / row_bytes).max(1);
    check_chunks(pieces, row_bytes, window)?;
    Ok((blocks(pieces, (block_bytes / row_bytes).max(1), window), window))
}

/// Fails where a window does not hold what is unpacked together: that would be unpacked again for each of its blocks.
fn check_chunks(pieces: &[Located<'_>], row_bytes: usize, window: usize) -> Result<()> {
    for piece in pieces.iter().filter(|piece| piece.rows().len() > window) {
        let rows = piece.chunk_rows().unwrap_or(0).min(piece.rows().len());
        let size = rows.saturating_mul(row_bytes);
        if rows > window && size > SMALL_CHUNK {
            let memory = (2 * size).div_ceil(1 << 20);
            return Err(piece.error_of(format!(
                "its rows are packed {} together ({}), and half of --memory must hold these; give --memory {memory}M or more, or {}",
                thousands(rows as u64),
                bytes(size as u64),
                piece.repack(rows.min(SMALL_CHUNK / row_bytes.max(1) / 4).max(1)),
            )));
        }
    }
    Ok(())
}

/// Threads that read blocks.
pub(super) fn readers() -> Option<Arc<rayon::ThreadPool>> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_READERS));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|n| format!("reader {n}"));
    pool.build().ok().map(Arc::new)
}

impl Streamed {
    fn new(files: Files, window: usize) -> Self {
        Self(Arc::new(Shared {
            files: Arc::new(files),
            held: RwLock::default(),
            kept: RwLock::default(),
            coming: Mutex::default(),
            spare: Arc::default(),
            window,
            readers: OnceLock::new(),
        }))
    }

    /// The same rows in at most `memory` bytes of memory.
    pub(super) fn within(&self, memory: u64) -> Result<Self> {
        let files = &self.0.files;
        let (blocks, window) = in_memory(&files.pieces(), self.d_in() * self.dtype().size(), memory)?;
        Ok(Self::new(Files::new(files.opened.clone(), blocks, files.marks(0..files.all())), window))
    }

    /// Bytes of values that may be in memory.
    pub(super) fn bytes(&self) -> usize {
        let Opened { d_in, dtype, .. } = *self.0.files.opened;
        2 * self.0.window * d_in * dtype.size()
    }

    /// Looks at all values, unless one of `known` is what was found then, with the hash `rows` of the rows as they are before;
    /// `skipped` counts what is dropped. Gives what was found, and what is left where rows are dropped.
    pub(super) fn look_through(
        &self,
        rows: u64,
        sets: &[&[u32]],
        known: Vec<FirstPass>,
        skipped: &mut Skipped,
        seen: Seen<'_>,
    ) -> Result<(FirstPass, Option<Fewer>)> {
        let files = &self.0.files;
        let Opened { bad_rows, plans, all, .. } = &*files.opened;
        let mut judge = Judge { rows: *bad_rows, skipped: std::mem::take(skipped) };
        let found = match known.into_iter().find(|known| known.is_of(files, rows, *bad_rows)) {
            Some(known) => {
                judge.skipped.non_finite += known.bad().count();
                judge.skipped.examples.extend(known.example().map(str::to_owned));
                known
            }
            None => first_pass::pass(files, rows, sets, &mut judge, seen)?,
        };
        let pieces = files.pieces();
        if let Some(first) = pieces.first() {
            judge.check_share(first.path(), *all, &see(first.path()))?;
        }
        *skipped = judge.skipped;
        if found.bad().next().is_none() {
            return Ok((found, None));
        }
        let usable = files.marks(0..*all);
        let mut keep = usable.clone();
        found.bad().for_each(|row| keep[row] = false);
        let stay: Vec<bool> =
            keep.iter().zip(usable).filter(|(_, usable)| *usable).map(|(&keep, _)| keep).collect();
        let sources = sources(plans, &pieces, &keep);
        let rows = Self::new(Files::new(files.opened.clone(), files.blocks.clone(), keep), self.0.window);
        Ok((found, Some(Fewer { rows, keep: stay, files: sources })))
    }

    /// The row that a row of the files is.
    pub(super) fn row_of(&self, row: usize) -> usize {
        let Files { keep, .. } = &*self.0.files;
        keep.get(..row).map_or(row, |keep| keep.iter().filter(|&&keep| keep).count())
    }

    /// Feeds some rows, spread evenly, to a hash.
    pub(super) fn hash(&self, hash: &mut xxhash_rust::xxh3::Xxh3) -> Result<()> {
        let n = self.n_rows();
        let rows: Vec<u32> =
            (0..n.min(FINGERPRINT_ROWS)).map(|i| (i * n / n.min(FINGERPRINT_ROWS)) as u32).collect();
        for (_, part) in self.read_missing(&rows.iter().copied().enumerate().collect::<Vec<_>>())? {
            hash.update(part.values().bytes());
        }
        Ok(())
    }

    /// Rows that are not in memory, each with its place in a request: by block, in parallel.
    fn read_missing(&self, missing: &[(usize, u32)]) -> Result<Vec<(Vec<usize>, Resident)>> {
        let files = &self.0.files;
        let mut sorted = missing.to_vec();
        sorted.sort_by_key(|&(_, row)| row);
        let parts: Vec<&[(usize, u32)]> =
            sorted.chunk_by(|a, b| files.block_of(a.1) == files.block_of(b.1)).collect();
        let read = |part: &&[(usize, u32)]| {
            let (places, rows): (Vec<usize>, Vec<u32>) = part.iter().copied().unzip();
            Ok((places, files.read_some(&rows)?))
        };
        parts.par_iter().map(read).collect()
    }

    /// Calls `found` with the place of each of `rows` that is in memory, and gives the others.
    fn find<'a>(
        &self,
        rows: &[u32],
        held: &'a HashMap<u32, Arc<Resident>>,
        kept: &'a Option<(Vec<u32>, Resident)>,
        mut found: impl FnMut(usize, &'a Resident, usize),
    ) -> Vec<(usize, u32)> {
        let files = &self.0.files;
        let mut missing = vec![];
        for (place, &row) in rows.iter().enumerate() {
            let block = files.block_of(row);
            if let Some(block_rows) = held.get(&block) {
                found(place, block_rows, (row - files.starts[block as usize]) as usize);
            } else if let Some((Ok(at), values)) =
                kept.as_ref().map(|(rows, values)| (rows.binary_search(&row), values))
            {
                found(place, values, at);
            } else {
                missing.push((place, row));
            }
        }
        missing
    }

    /// Waits for the blocks that are on their way.
    fn arrive(&self) -> Result<()> {
        let Some((_, coming)) = lock(&self.0.coming).take() else { return Ok(()) };
        let panicked =
            |_| Error::Failed("a thread that read rows came to a bad end; please report this".into());
        let blocks = coming.join().map_err(panicked)??;
        self.add(blocks);
        Ok(())
    }

    /// Whether all these blocks are in memory.
    fn holds(&self, blocks: &[u32]) -> bool {
        let held = look(&self.0.held);
        blocks.iter().all(|block| held.contains_key(block))
    }

    fn add(&self, blocks: Vec<(u32, Resident)>) {
        let mut held = self.0.held.write().unwrap_or_else(PoisonError::into_inner);
        held.extend(blocks.into_iter().map(|(block, rows)| (block, Arc::new(rows))));
    }
}

impl RowSource for Streamed {
    fn n_rows(&self) -> usize {
        self.0.files.n_rows()
    }

    fn d_in(&self) -> usize {
        self.0.files.d_in()
    }

    fn dtype(&self) -> Dtype {
        self.0.files.dtype()
    }

    fn read(&self, rows: &[u32], out: &mut [f32]) -> Result<()> {
        let d = self.d_in();
        let missing = {
            let (held, kept) = (look(&self.0.held), look(&self.0.kept));
            self.find(rows, &held, &kept, |place, values, at| {
                values.values().row_into(at, d, &mut out[place * d..][..d]);
            })
        };
        for (places, part) in self.read_missing(&missing)? {
            for (at, place) in places.into_iter().enumerate() {
                part.values().row_into(at, d, &mut out[place * d..][..d]);
            }
        }
        Ok(())
    }

    fn read_stored(&self, row: u32, out: &mut [u8]) -> Result<()> {
        let mut read = Ok(());
        let missing = {
            let (held, kept) = (look(&self.0.held), look(&self.0.kept));
            self.find(&[row], &held, &kept, |_, values, at| read = values.read_stored(at as u32, out))
        };
        if missing.is_empty() {
            return read;
        }
        self.0.files.read_some(&[row])?.read_stored(0, out)
    }

    fn gather_stored(&self, rows: &[u32], out: &mut [u8]) -> Result<()> {
        let width = out.len() / rows.len().max(1);
        let mut found = vec![];
        let (held, kept) = (look(&self.0.held), look(&self.0.kept));
        let missing =
            self.find(rows, &held, &kept, |place, values, at| found.push((place, values, at as u32)));
        // Places rise: the pieces of `out` are taken one after another.
        let (mut pieces, mut rest, mut done) = (vec![], &mut out[..], 0);
        for &(place, values, at) in &found {
            let (piece, after) = rest[(place - done) * width..].split_at_mut(width);
            pieces.push((values, at, piece));
            (rest, done) = (after, place + 1);
        }
        let each = pieces.into_par_iter().with_min_len(TOGETHER);
        each.try_for_each(|(values, at, piece)| values.read_stored(at, piece))?;
        drop((held, kept));
        for (places, part) in self.read_missing(&missing)? {
            for (at, place) in places.into_iter().enumerate() {
                part.read_stored(at as u32, &mut out[place * width..][..width])?;
            }
        }
        Ok(())
    }

    fn window(&self) -> Option<usize> {
        Some(self.0.window)
    }

    fn block_of(&self, row: u32) -> u32 {
        self.0.files.block_of(row)
    }

    fn hold(&self, now: &[u32], next: &[u32]) -> Result<()> {
        let coming = |wanted: &[u32]| {
            let coming = lock(&self.0.coming);
            coming.as_ref().is_some_and(|(blocks, _)| blocks.iter().all(|block| wanted.contains(block)))
        };
        // Others may have asked for the same before: what comes for later need not be waited for.
        let later = self.holds(now) && coming(next);
        if !later {
            self.arrive()?;
        }
        let wanted: HashSet<u32> = now.iter().chain(next).copied().collect();
        {
            let mut held = self.0.held.write().unwrap_or_else(PoisonError::into_inner);
            let left = held.extract_if(|block, _| !wanted.contains(block));
            self.0.spare.fill(left.map(|(_, rows)| rows));
        }
        let missing = |blocks: &[u32]| -> Vec<u32> {
            let held = look(&self.0.held);
            let mut blocks: Vec<u32> =
                blocks.iter().copied().filter(|block| !held.contains_key(block)).collect();
            blocks.sort_unstable();
            blocks
        };
        self.add(self.0.files.read_blocks(&missing(now), &self.0.spare)?);
        let next = if later { vec![] } else { missing(next) };
        if !next.is_empty() {
            let (files, spare) = (self.0.files.clone(), self.0.spare.clone());
            let thread = std::thread::Builder::new().name("rows".into());
            let readers = self.0.readers.get_or_init(readers).clone();
            let blocks = next.clone();
            let thread = thread.spawn(move || match readers {
                Some(readers) => readers.install(|| files.read_blocks(&next, &spare)),
                None => files.read_blocks(&next, &spare),
            });
            let thread = thread.map_err(|e| Error::Failed(format!("no thread to read rows: {e}")))?;
            *lock(&self.0.coming) = Some((blocks, thread));
        } else if !later {
            self.0.spare.fill(std::iter::empty());
        }
        Ok(())
    }

    fn keep(&self, rows: &[u32]) -> Result<()> {
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        rows.dedup();
        if look(&self.0.kept).as_ref().is_some_and(|(kept, _)| *kept == rows) {
            return Ok(());
        }
        let places: Vec<(usize, u32)> = rows.iter().copied().enumerate().collect();
        let (d, size) = (self.d_in(), self.dtype().size());
        let mut values = Values::zeros(self.dtype(), rows.len() * d).ok_or_else(|| no_room(rows.len(), d))?;
        let bytes = values.bytes_mut();
        for (places, part) in self.read_missing(&places)? {
            for (place, row) in places.into_iter().zip(part.values().bytes().chunks_exact(d * size)) {
                bytes[place * d * size..][..d * size].copy_from_slice(row);
            }
        }
        let kept = Some((rows, Resident::new(values, d)?));
        *self.0.kept.write().unwrap_or_else(PoisonError::into_inner) = kept;
        Ok(())
    }
}
