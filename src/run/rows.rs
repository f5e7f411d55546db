//! The rows of a run: its files, the memory that they may take, its groups and split.

use super::folder::names;
use super::team::Team;
use crate::config::{Options, RowMemory};
use crate::console::{self, progress::Spinner};
use crate::data::{Embeddings, FirstPass, FoundFiles, LoadOptions, data_files, is_id_file};
use crate::error::{Error, Result};
use crate::files;
use crate::interrupt;
use crate::memory::half_of_free;
use crate::rows::Split;
use crate::text::bytes;
use std::path::{Path, PathBuf};

/// Loads data files, telling progress and skipped rows unless `quiet`. Rows that would take more than half of the memory
/// that is free stay in their files; what the run in the folder `run` knows of them is not found again.
///
/// # Errors
/// As [`Embeddings::load`].
pub fn load(paths: &[PathBuf], options: &LoadOptions, run: &Path, quiet: bool) -> Result<Embeddings> {
    let mut spinner = Spinner::new("loading", quiet);
    let mut data = Embeddings::open_within(paths, options, half_of_free())?;
    look_through(&mut data, &[], Some(run), &Team::alone(), &mut spinner)?;
    loaded(spinner, &data, quiet)?;
    Ok(data)
}

/// Looks at rows that stay in their files, and finds mean and variance of `sets` of them, as far as no first pass of the run
/// in the folder `run`, or of one beside it, did. The first of several ranks does it for all.
fn look_through(
    data: &mut Embeddings,
    sets: &[&[u32]],
    run: Option<&Path>,
    team: &Team,
    spinner: &mut Spinner,
) -> Result<()> {
    if !data.is_streamed() {
        return Ok(());
    }
    let mut seen = |done, all| spinner.progress(done as u64, all as u64, "rows");
    let found: Option<FirstPass> = team.of_first(|| {
        let known = run.map(known_rows).unwrap_or_default();
        data.look_through(sets, known, &mut seen)?;
        Ok(data.found().cloned())
    })?;
    if !team.is_first() {
        data.look_through(sets, found.into_iter().collect(), &mut seen)?;
    }
    Ok(())
}

/// Reports what was loaded.
pub(super) fn loaded(spinner: Spinner, data: &Embeddings, quiet: bool) -> Result<()> {
    interrupt::check()?;
    let place = if data.is_streamed() {
        format!(", in their files, {} at a time in memory", bytes(data.bytes() as u64))
    } else {
        String::new()
    };
    spinner.finish(&format!("{} rows of {} {}{place}", data.n_rows(), data.d_in(), data.dtype()));
    if !quiet {
        warn_of(data);
    }
    Ok(())
}

/// Tells what a person should know of rows.
pub(crate) fn warn_of(data: &Embeddings) {
    data.warnings().iter().for_each(console::warn);
    data.skipped().warn();
}

/// The files that `options` name, whose paths are made absolute there: a run is resumed from anywhere.
pub(super) fn find(options: &mut Options) -> Result<FoundFiles> {
    let paths = options.data.clone().unwrap_or_default();
    if paths.is_empty() {
        return Err(Error::Usage(
            "no data: name one or more files of embeddings, or a folder of them".into(),
        ));
    }
    let found = data_files(&paths)?;
    let absolute = found.paths.iter().map(|p| std::path::absolute(p).map_err(Error::io(p, "find")));
    let absolute: Vec<PathBuf> = absolute.collect::<Result<_>>()?;
    if let Some(path) = absolute.iter().find(|path| path.to_str().is_none()) {
        return Err(Error::Usage(format!(
            "{}: this path is not UTF-8, and the run's config.toml, which is, could not name its data; rename it, or train from a link to it (`ln -s`)",
            path.display()
        )));
    }
    options.data = Some(absolute);
    Ok(found)
}

/// How the rows of a run are read.
pub(super) struct Reading<'a> {
    pub options: &'a Options,
    /// A table of groups.
    pub groups: Option<&'a Path>,
    /// Bytes of memory that rows may take.
    pub memory: u64,
    /// The folder of the run, which may know what a first pass found before.
    pub run: Option<&'a Path>,
    /// The ranks that read them.
    pub team: &'a Team,
    pub quiet: bool,
}

impl Reading<'_> {
    /// Reads files with the groups of a table. Of rows that stay there, mean and variance of `sets` are found on the way.
    pub fn read(
        self,
        found: FoundFiles,
        sets: impl FnOnce(&Embeddings) -> Result<Vec<Vec<u32>>>,
    ) -> Result<Embeddings> {
        let Self { options, groups, memory, run, team, quiet } = self;
        let mut spinner = Spinner::new("loading", quiet);
        let mut data = Embeddings::open_within(&found.paths, &options.reading(), memory)?;
        data.warn_of(found.warnings);
        grouped(&mut data, groups, options)?;
        if data.is_streamed() {
            let sets = sets(&data)?;
            let sets: Vec<&[u32]> = sets.iter().map(Vec::as_slice).collect();
            look_through(&mut data, &sets, run, team, &mut spinner)?;
        }
        loaded(spinner, &data, quiet)?;
        Ok(data)
    }
}

/// Runs beside a run that are asked what they know of its rows.
const MOST_NEIGHBOURS: usize = 100;

/// What first passes found before, as the run in `folder` and those beside it keep it. Where nothing fits, or nothing can
/// be read, there is another pass.
fn known_rows(folder: &Path) -> Vec<FirstPass> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = std::fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = std::iter::once(folder.to_owned()).chain(beside.filter(|path| path != folder));
    let texts = folders.filter_map(|folder| std::fs::read(folder.join(names::ROWS)).ok());
    texts.take(MOST_NEIGHBOURS).filter_map(|text| serde_json::from_slice(&text).ok()).collect()
}

/// Keeps what the first pass found, for those that go on with these rows.
pub(super) fn keep_known_rows(path: &Path, data: &Embeddings) -> Result<()> {
    let Some(found) = data.found() else { return Ok(()) };
    let text = serde_json::to_vec(found)
        .map_err(|e| Error::Failed(format!("what is known of the rows cannot be written as JSON: {e}")))?;
    files::write_whole(path, &text)
}

/// Gives rows the groups of a table.
pub(super) fn grouped(data: &mut Embeddings, groups: Option<&Path>, options: &Options) -> Result<()> {
    groups.map_or(Ok(()), |path| data.group_by_table(path, options.groups_reversed.unwrap_or(false)))
}

/// Bytes of memory that rows may take.
pub(super) fn memory_of(options: &Options) -> u64 {
    match options.memory {
        Some(RowMemory::Bytes(bytes)) => bytes,
        Some(RowMemory::All) => u64::MAX,
        None => half_of_free(),
    }
}

/// The tables of groups and of a split that `options` name. These and a file of ids are made absolute there: a run is
/// resumed from anywhere.
pub(super) fn tables_of_split(options: &mut Options) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    if options.group_by.is_some() && options.groups.is_some() {
        return Err(Error::Usage(
            "--groups and --group-by are two ways to say the same; leave one out".into(),
        ));
    }
    if options.splits.is_some() && (options.group_by.is_some() || options.groups.is_some()) {
        return Err(Error::Usage(
            "--splits says which ids are in which split; leave out --groups and --group-by".into(),
        ));
    }
    let absolute = |name: &mut Option<String>| -> Result<Option<PathBuf>> {
        let Some(text) = name else { return Ok(None) };
        let path = std::path::absolute(&*text).map_err(Error::io(Path::new(&*text), "find"))?;
        *text = path.display().to_string();
        Ok(Some(path))
    };
    if options.ids.as_deref().is_some_and(is_id_file) {
        absolute(&mut options.ids)?;
    }
    Ok((absolute(&mut options.groups)?, absolute(&mut options.splits)?))
}

/// The split of a table; rows of ids that it lacks are in no part, with a warning.
pub(super) fn given_split(path: &Path, data: &Embeddings, quiet: bool) -> Result<Split> {
    let (split, missing) = Split::from_tsv(path, data.index())?;
    if split.train.is_empty() {
        let what = "puts no id of the data into train; give a table of these ids";
        return Err(Error::data(path, "", what));
    }
    if missing > 0 && !quiet {
        console::warn(format_args!(
            "{missing} of {} ids are not in {} and are left out",
            data.index().n_groups(),
            path.display()
        ));
    }
    Ok(split)
}

/// The training rows, before it is known which rows can be used.
pub(super) fn training_rows(data: &Embeddings, splits: Option<&Path>, options: &Options) -> Result<Vec<u32>> {
    Ok(match splits {
        Some(path) => Split::from_tsv(path, data.index())?.0.train,
        None => Split::new(data.index(), options.seed_of_split()).train,
    })
}
