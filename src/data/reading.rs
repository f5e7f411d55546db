//! Decides what the rows of a file are: one reading, or an error that lists the readings as commands.
//!
//! | found | layout | ids |
//! | --- | --- | --- |
//! | a float dataset per id, of one row each | one vector per id | what differs between the paths (`records`) |
//! | the same, some of several rows | residues per id | likewise |
//! | a matrix | matrix | strings or integers beside it (`ids`), else `<file stem>:<row>` |
//! | a matrix, and where each protein starts | residues per id | likewise, one per protein |
//! | matrices in groups of their own, each with ids | matrix | those |
//!
//! Nothing here depends on the order in which a file lists its names, and no value of a float dataset is read.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::LoadOptions;
use super::file::{Dataset, File, Kind, place};
use super::id_file;
use super::ids::{self, Beside, Found, is_column, last};
use super::kind::Stored;
use super::pattern::Pattern;
use super::records::{self, Choice, Several, is_field};
use super::scan::{Survey, check_extent, group_of, survey};
use super::view::View;
use super::writers::{CellNames, Writer, refuse};
use crate::error::{Error, Result};
use crate::rows::Dtype;
use crate::text::thousands;
use crate::text::tsv::quoted_path;

/// What `--ids` says where all rows of a file belong to one id, which is the file's name.
const OF_FILE: &str = "file";

/// What the rows of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    VectorPerId,
    ResiduesPerId,
    Matrix,
}

impl Layout {
    pub fn name(self) -> &'static str {
        match self {
            Self::VectorPerId => "one vector per id",
            Self::ResiduesPerId => "residues per id",
            Self::Matrix => "matrix",
        }
    }
}

/// The ids of the rows of one dataset.
pub(super) enum Ids {
    /// One row, one id.
    One(String),
    /// All rows belong to this id.
    Residues(String),
    /// An id for each row.
    Rows(Vec<String>),
    /// An id for each row: this, a colon and the row's number.
    Numbered(String),
    /// Consecutive rows belong to one id: the ids, and the row after the last of each.
    Runs(Box<(Vec<String>, Vec<usize>)>),
}

impl Ids {
    /// How many ids `n_rows` rows have.
    fn len(&self, n_rows: usize) -> usize {
        match self {
            Self::One(_) | Self::Residues(_) => 1,
            Self::Rows(ids) => ids.len(),
            Self::Runs(runs) => runs.0.len(),
            Self::Numbered(_) => n_rows,
        }
    }
}

/// One dataset whose rows are used.
pub(super) struct Piece {
    /// The dataset's place among those of the plan: files of 100,000 come here, and to move each takes its time.
    pub at: usize,
    pub view: View,
    pub stored: Stored,
    pub n_rows: usize,
    pub width: u64,
    pub ids: Ids,
    /// What each id belongs to, where that was asked for.
    pub clusters: Option<Box<[String]>>,
}

impl Piece {
    pub fn n_ids(&self) -> usize {
        self.ids.len(self.n_rows)
    }
}

/// A file and what is to be read from it.
pub(super) struct Plan {
    pub file: File,
    /// All that the file holds.
    pub datasets: Vec<Dataset>,
    pub layout: Layout,
    pub pieces: Vec<Piece>,
    /// The dataset, or how many there are, for people.
    pub dataset_text: String,
    /// Why it is read so, for people.
    pub reason: String,
    /// What a person should know before training on it.
    pub warnings: Vec<String>,
}

/// Opens `path` and decides what its rows are.
pub(super) fn plan(path: &Path, options: &LoadOptions) -> Result<Plan> {
    let file = File::open(path)?;
    let mut survey = survey(&file)?;
    if options.bfloat16 {
        for dataset in &mut survey.datasets {
            if dataset.kind.may_be_bfloat16() {
                dataset.kind = Kind::Float(Stored { dtype: Dtype::Bf16, big_endian: false });
            }
        }
    }
    let reader = Reader { writer: Writer::of(&file, &survey)?, file: &file, survey: &survey, options };
    let mut reading = reader.read()?;
    reader.group(&mut reading)?;
    let Reading { layout, pieces, dataset_text, reason, mut warnings } = reading;
    for piece in &pieces {
        check_extent(&file, piece.dataset)?;
    }
    // Pieces are in the order of the survey.
    let mut all = survey.datasets.iter().enumerate();
    let placed = |d: Draft<'_>| {
        let (at, _) = all.find(|(_, dataset)| std::ptr::eq(*dataset, d.dataset))?;
        let Draft { view, stored, n_rows, width, ids, clusters, .. } = d;
        Some(Piece { at, view, stored, n_rows, width, ids, clusters })
    };
    let pieces = pieces.into_iter().filter_map(placed).collect();
    if let Some(first) = survey.dangling.first() {
        let n = survey.dangling.len();
        warnings.push(format!(
            "{}: {n} of its links lead nowhere and {} skipped, the first \"/{first}\"",
            file.path.display(),
            if n == 1 { "is" } else { "are" }
        ));
    }
    Ok(Plan { datasets: survey.datasets, layout, pieces, dataset_text, reason, warnings, file })
}

/// A piece that is being decided.
struct Draft<'a> {
    dataset: &'a Dataset,
    view: View,
    stored: Stored,
    n_rows: usize,
    width: u64,
    ids: Ids,
    clusters: Option<Box<[String]>>,
}

/// What was decided.
struct Reading<'a> {
    layout: Layout,
    /// In the order of the survey.
    pieces: Vec<Draft<'a>>,
    dataset_text: String,
    reason: String,
    warnings: Vec<String>,
}

/// A float dataset that may hold rows.
#[derive(Clone)]
struct Candidate<'a> {
    dataset: &'a Dataset,
    stored: Stored,
    view: View,
}

impl Candidate<'_> {
    fn n_rows(&self) -> u64 {
        self.view.n_rows(&self.dataset.shape)
    }

    fn width(&self) -> u64 {
        self.view.width(&self.dataset.shape)
    }

    fn is_matrix(&self) -> bool {
        self.view.rows.is_some()
    }
}

/// Which datasets a person, or nobody, chose.
struct Chosen<'a> {
    datasets: Vec<&'a Dataset>,
    /// The group that all lie in.
    within: String,
    /// The pattern that matches the path of each, where one was given that has `*`.
    pattern: Option<&'a str>,
    /// One dataset by its name.
    exact: bool,
}

struct Reader<'a> {
    file: &'a File,
    survey: &'a Survey,
    options: &'a LoadOptions,
    writer: Writer,
}

impl<'a> Reader<'a> {
    fn error(&self, what: impl Into<String>) -> Error {
        Error::data(&self.file.path, "", what.into())
    }

    fn read(&self) -> Result<Reading<'a>> {
        let chosen = self.choose()?;
        let candidates = self.candidates(&chosen)?;
        if let Some(pattern) = chosen.pattern {
            return self.matched(candidates, &Pattern::new(pattern));
        }
        let n_matrices = candidates.iter().filter(|c| c.is_matrix()).count();
        if self.writer == Writer::Matlab && candidates.len() > 1 {
            let choices = candidates.iter().map(|c| (c.dataset.path.clone(), shape_text(&c.dataset.shape)));
            return Err(self.several("holds several matrices", choices.collect()));
        }
        match &candidates[..] {
            [one] if one.is_matrix() => return self.matrix(one),
            [_] => {}
            _ if n_matrices == 1 => {
                let matrix = candidates.iter().find(|c| c.is_matrix());
                let vectors = || candidates.iter().filter(|c| !c.is_matrix());
                if let Some(matrix) = matrix {
                    let named = matches!(self.beside(matrix)?, Beside::Ids(_)) && matrix.n_rows() > 1;
                    // A number for each row, or for each column, is no row.
                    if named || vectors().any(|v| v.width() != matrix.width()) {
                        return self.matrix(matrix);
                    }
                }
            }
            _ if n_matrices > 1 && n_matrices == candidates.len() => {
                if let Some(reading) = self.matrices_with_ids(&candidates)? {
                    return Ok(reading);
                }
            }
            _ => {}
        }
        self.per_id(candidates, &chosen)
    }

    /// The datasets that `--dataset` names, or all.
    fn choose(&self) -> Result<Chosen<'a>> {
        let all = &self.survey.datasets;
        let of = |datasets, within: &str, exact| Chosen {
            datasets,
            within: within.to_owned(),
            pattern: None,
            exact,
        };
        let Some(name) =
            self.options.dataset.as_deref().map(|name| name.trim_matches('/')).filter(|n| !n.is_empty())
        else {
            if self.options.dataset.is_none() {
                refuse(self.file, self.survey)?;
            }
            return Ok(of(all.iter().collect(), "", false));
        };
        if let Some(dataset) = all.iter().find(|d| d.path == name) {
            return Ok(of(vec![dataset], group_of(name), true));
        }
        let inside = |d: &&Dataset| d.path.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        let group: Vec<&Dataset> = all.iter().filter(inside).collect();
        if !group.is_empty() {
            return Ok(of(group, name, false));
        }
        let pattern = Pattern::new(name);
        let found: Vec<(&Dataset, &str)> =
            all.iter().filter_map(|d| pattern.matches(&d.path).map(|(_, rest)| (d, rest))).collect();
        if !name.contains('*') || found.is_empty() {
            // A name in a file where another name leads to the same dataset.
            if let Ok(Some(dataset)) = self.file.describe(name, false)
                && let Some(known) = all.iter().find(|d| {
                    d.shape == dataset.shape && self.file.identity(&d.path) == self.file.identity(name)
                })
            {
                return Ok(of(vec![known], group_of(&known.path), true));
            }
            let what = format!("holds no dataset or group \"{name}\"; name one of: {}", listed(all.iter()));
            return Err(self.error(what));
        }
        let whole: Vec<&Dataset> =
            found.iter().filter(|(_, rest)| rest.is_empty()).map(|(d, _)| *d).collect();
        if whole.is_empty() {
            return Ok(of(found.into_iter().map(|(d, _)| d).collect(), "", false));
        }
        Ok(Chosen { datasets: whole, within: String::new(), pattern: Some(name), exact: false })
    }

    /// Those of the chosen datasets that can hold rows.
    fn candidates(&self, chosen: &Chosen<'a>) -> Result<Vec<Candidate<'a>>> {
        let transposed =
            (self.options.transpose || self.writer == Writer::Matlab) != self.file.columns_first();
        let by_name = chosen.exact || chosen.pattern.is_some();
        let (mut found, mut deep) = (Vec::with_capacity(chosen.datasets.len()), vec![]);
        for &dataset in &chosen.datasets {
            let stored = match &dataset.kind {
                Kind::Float(stored) => *stored,
                Kind::OddFloat(_) => return Err(self.unread(dataset)),
                // A pattern is for what can be read of all that it matches.
                _ if chosen.exact => return Err(self.unread(dataset)),
                _ => continue,
            };
            if dataset.shape.is_empty() || !(by_name || self.writer.may_hold_rows(dataset)) {
                continue;
            }
            let picks = &self.options.index.0;
            if let Some((axis, index)) =
                picks.iter().find(|(axis, index)| dataset.shape.get(*axis).is_none_or(|n| index >= n))
            {
                return Err(Error::data(
                    &self.file.path,
                    place(dataset),
                    format!(
                        "has the shape {:?}, in which --index {axis}={index} is nothing; axes and indices count from 0",
                        dataset.shape
                    ),
                ));
            }
            match View::new(&dataset.shape, picks, transposed) {
                Some(view) => found.push(Candidate { dataset, stored, view }),
                None => deep.push(dataset),
            }
        }
        self.drop_coordinates(&mut found);
        if let Some(deepest) = deep.first() {
            if found.is_empty() {
                return Err(self.too_many_axes(deepest));
            }
            let all = found.iter().map(|c| c.dataset).chain(deep.iter().copied());
            let choices = all.map(|d| (d.path.clone(), shape_text(&d.shape)));
            return Err(
                self.several("holds datasets of 1 or 2 axes beside others of more", choices.collect())
            );
        }
        if found.is_empty() {
            return Err(self.nothing(chosen));
        }
        if let ([only], false) = (&found[..], by_name)
            && !only.is_matrix()
        {
            let larger = |d: &&Dataset| {
                d.path != only.dataset.path && size(&d.shape) >= only.width() && size(&d.shape) > 1
            };
            if let Some(larger) = chosen.datasets.iter().copied().find(|d| larger(d)) {
                return Err(self.error(format!(
                    "holds one short vector of floats, \"/{}\", beside \"/{}\" ({}), which is no floats; give a file of embeddings, or name the vector with --dataset",
                    only.dataset.path, larger.path, shape_text(&larger.shape)
                )));
            }
        }
        Ok(found)
    }

    /// Takes out the coordinates of axes (HDF5 dimension scales), as xarray writes them beside its matrices.
    fn drop_coordinates(&self, found: &mut Vec<Candidate<'a>>) {
        const FEW: usize = 100;
        let matrices = found.iter().filter(|c| c.is_matrix()).count();
        if matrices == 0 || found.len() - matrices > FEW {
            return;
        }
        found.retain(|c| {
            c.is_matrix()
                || !matches!(self.file.text_of_attribute(&c.dataset.path, "CLASS"), Ok(Some(class)) if class == "DIMENSION_SCALE")
        });
    }

    /// The error for a dataset of another kind.
    fn unread(&self, dataset: &Dataset) -> Error {
        let what = match &dataset.kind {
            Kind::Integer { size: 2 } | Kind::Opaque16 => {
                "holds values of 16 bits that are no floats: if they are the bits of bfloat16 numbers, add --stored-as bfloat16; else convert it to floats".to_owned()
            }
            kind => {
                let holds = match kind {
                    Kind::Text => "text",
                    Kind::OddFloat(what) => what.as_str(),
                    Kind::Integer { .. } | Kind::Opaque16 => "integers",
                    Kind::Other(what) => what,
                    Kind::Float(_) => "floats",
                };
                let other = if self.survey.datasets.len() > 1 { ", or name another with --dataset" } else { "" };
                format!("holds {holds}; float16, bfloat16, float32 or float64 is needed: convert it{other}")
            }
        };
        Error::data(&self.file.path, place(dataset), what)
    }

    fn too_many_axes(&self, dataset: &Dataset) -> Error {
        let axis = dataset.shape.iter().enumerate().min_by_key(|(_, n)| **n).map_or(0, |(axis, _)| axis);
        let last = dataset.shape[axis].saturating_sub(1);
        let command = self.command(&format!("--index {axis}={last}"));
        Error::data(
            &self.file.path,
            place(dataset),
            format!(
                "has the shape ({}); rows need 2 axes: take one index of an axis, for example the last of axis {axis} (counted from 0): {command}",
                shape_text(&dataset.shape)
            ),
        )
    }

    /// The error for a file without float datasets.
    fn nothing(&self, chosen: &Chosen<'_>) -> Error {
        if let Some(error) = self.writer.no_rows(self.file, self.survey) {
            return error;
        }
        let bits = |d: &&&Dataset| d.kind.may_be_bfloat16() && size(&d.shape) >= 8;
        if let Some(dataset) = chosen.datasets.iter().find(bits) {
            return self.unread(dataset);
        }
        let bytes = |d: &&&Dataset| d.kind == (Kind::Integer { size: 1 }) && !d.shape.is_empty();
        if let Some(codes) = chosen.datasets.iter().find(bytes) {
            return Error::data(
                &self.file.path,
                place(codes),
                "holds integers of 8 bits; if they are quantised, write floats, in Python `f[name][:].astype(\"f4\") * scale`",
            );
        }
        if let [only] = chosen.datasets[..]
            && !matches!(only.kind, Kind::Float(_))
        {
            return self.unread(only);
        }
        self.error(if chosen.datasets.is_empty() {
            "holds no datasets; give a file of embeddings".to_owned()
        } else {
            format!(
                "holds no float datasets with axes, only {}; give a file of embeddings",
                listed(chosen.datasets.iter().copied())
            )
        })
    }

    /// The command that shows one reading.
    fn command(&self, flags: &str) -> String {
        format!("`sae inspect {} {flags}`", quoted_path(&self.file.path))
    }

    /// The error for a file with several readings, each a pattern and what it holds.
    fn several(&self, why: &str, choices: Vec<(String, String)>) -> Error {
        const SHOWN: usize = 6;
        let all = choices.len();
        let shown: Vec<String> = choices
            .into_iter()
            .take(SHOWN)
            .map(|(pattern, what)| {
                let pattern = quoted_path(Path::new(&pattern));
                format!("{} ({what})", self.command(&format!("--dataset {pattern}")))
            })
            .collect();
        let more = if all > SHOWN { format!(", ... ({all} in all)") } else { String::new() };
        self.error(format!("{why}; choose one with --dataset: {}{more}", shown.join(", ")))
    }

    fn several_of(&self, several: Several, candidates: &[Candidate<'_>]) -> Error {
        let text = |choice: &Choice| {
            let shapes: HashSet<String> =
                choice.members.iter().map(|&at| shape_text(&candidates[at].dataset.shape)).collect();
            match (&choice.members[..], shapes.len()) {
                ([_], _) => shapes.into_iter().collect(),
                (members, 1) => format!(
                    "{} of {}",
                    thousands(members.len() as u64),
                    shapes.iter().next().map_or("", String::as_str)
                ),
                (members, _) => {
                    let width = candidates[members[0]].width();
                    format!("{} of (..., {width})", thousands(members.len() as u64))
                }
            }
        };
        let choices = several.choices.iter().map(|choice| (choice.pattern.clone(), text(choice))).collect();
        self.several(&several.why, choices)
    }

    /// What beside a matrix names its rows, where nobody said so.
    fn beside(&self, matrix: &Candidate<'_>) -> Result<Beside> {
        let n = matrix.n_rows();
        // HDF5 has its ids inside.
        if self.file.hdf().is_none()
            && let Some(path) = id_file::beside(&self.file.path)?
        {
            return Ok(Beside::Ids(of_file(&path, n)?));
        }
        if let Writer::AnnData(names) = &self.writer {
            let dataset = |path: &str| self.survey.datasets.iter().find(|d| d.path == path);
            let found = match names {
                CellNames::Dataset(path) => match dataset(path) {
                    Some(names) => ids::read_ids(self.file, names)?,
                    None => None,
                },
                CellNames::Field(field) => match dataset("obs") {
                    Some(obs) => self.field(obs, field)?,
                    None => None,
                },
                CellNames::Nowhere => None,
            };
            let from = match names {
                CellNames::Dataset(path) => format!("/{path}"),
                _ => "/obs".to_owned(),
            };
            return Ok(match found.filter(|ids| ids.len() as u64 == n) {
                Some(ids) => Beside::Ids(Found { ids, from }),
                None => Beside::None { passed_over: vec![] },
            });
        }
        ids::find(self.file, matrix.dataset, n, &self.survey.datasets)
    }

    fn field(&self, dataset: &Dataset, field: &str) -> Result<Option<Vec<String>>> {
        let Some(texts) = self.file.read_field(dataset, field)? else { return Ok(None) };
        let ids = texts.into_iter().enumerate().map(|(row, text)| {
            let at = || format!("{}, row {row}", place(dataset));
            String::from_utf8(text).map_err(|_| {
                Error::data(&self.file.path, at(), "the id is not UTF-8; write the ids again as UTF-8")
            })
        });
        ids.collect::<Result<Vec<_>>>().map(Some)
    }

    /// The ids that `--ids` names for a matrix of `n` rows.
    fn given_ids(&self, name: &str, matrix: &Dataset, n: u64) -> Result<Found> {
        let wrong = |what: String| Err(Error::data(&self.file.path, place(matrix), what));
        if id_file::is_file(name) {
            return of_file(Path::new(name), n);
        }
        let found = if let Some(attribute) = name.strip_prefix('@') {
            let texts = self.file.texts_of_attribute(&matrix.path, attribute)?;
            texts.map(|ids| Found { ids, from: format!("attribute \"{attribute}\"") })
        } else {
            self.column(name, group_of(&matrix.path))?
        };
        let Some(found) = found else {
            let texts = self.survey.datasets.iter().filter(|d| d.kind == Kind::Text || is_integer(d));
            let fitting: Vec<&Dataset> = texts.filter(|d| is_column(d, n)).collect();
            let what = if fitting.is_empty() {
                "no other dataset of texts or integers is as long; number the rows with --ids row".to_owned()
            } else {
                format!("name one of: {}, or number the rows with --ids row", listed(fitting.into_iter()))
            };
            return wrong(format!("has no ids \"{name}\" beside it; {what}"));
        };
        if found.ids.len() as u64 != n {
            return wrong(format!(
                "has {n} rows, and --ids {name} gives {} ids; name ids of its rows",
                found.ids.len()
            ));
        }
        Ok(found)
    }

    /// The texts or integers of the dataset `name`, in `group` or from the root; `a.b` is the field b of a.
    fn column(&self, name: &str, group: &str) -> Result<Option<Found>> {
        let name = name.trim_start_matches('/');
        let inside = if group.is_empty() { name.to_owned() } else { format!("{group}/{name}") };
        let of_cells = format!("obs/{name}");
        let cells = matches!(self.writer, Writer::AnnData(_)).then_some(of_cells.as_str());
        for path in [inside.as_str(), name].into_iter().chain(cells) {
            let dataset = |path: &str| self.survey.datasets.iter().find(|d| d.path == path);
            // AnnData's and pandas' categories: names, and which of them each row has.
            let inner = |part: &str| dataset(&format!("{path}/{part}"));
            if let (Some(categories), Some(codes)) = (inner("categories"), inner("codes"))
                && let Some(names) = ids::read_ids(self.file, categories)?
                && is_integer(codes)
            {
                let codes = self.file.read_integers(codes)?;
                let name = |code: &i64| usize::try_from(*code).ok().and_then(|code| names.get(code)).cloned();
                let ids = codes.iter().map(|code| name(code).unwrap_or_default()).collect();
                return Ok(Some(Found { ids, from: format!("/{path}") }));
            }
            if let Some(dataset) = dataset(path)
                && let Some(ids) = ids::read_ids(self.file, dataset)?
            {
                return Ok(Some(Found { ids, from: format!("/{path}") }));
            }
            if let Some((record, field)) = path.rsplit_once('.')
                && let Some(dataset) = dataset(record)
                && let Some(ids) = self.field(dataset, field)?
            {
                return Ok(Some(Found { ids, from: format!("/{path}") }));
            }
        }
        Ok(None)
    }

    /// What the ids of each piece belong to, by `--group-by`.
    fn group(&self, reading: &mut Reading<'_>) -> Result<()> {
        let Some(name) = self.options.group_by.as_deref() else { return Ok(()) };
        for draft in &mut reading.pieces {
            let n = draft.ids.len(draft.n_rows);
            let group = group_of(&draft.dataset.path);
            let found = match name.strip_prefix('@') {
                Some(attribute) => self.file.texts_of_attribute(&draft.dataset.path, attribute)?,
                None if n > 1 => self.column(name, group)?.map(|found| found.ids),
                None => None,
            };
            draft.clusters = found.filter(|clusters| clusters.len() == n).map(Vec::into_boxed_slice);
            if draft.clusters.is_none() {
                let what = format!(
                    "has nothing called \"{name}\" with a text or integer for each of its {n} ids; name a dataset beside it, or @ and an attribute, with --group-by, or give a table with --groups"
                );
                return Err(Error::data(&self.file.path, place(draft.dataset), what));
            }
        }
        Ok(())
    }

    fn stem(&self) -> String {
        self.file.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A matrix with ids beside it, or without.
    fn matrix(&self, matrix: &Candidate<'a>) -> Result<Reading<'a>> {
        let at = place(matrix.dataset);
        let n = self.to_usize(matrix)?;
        if self.options.ids.as_deref() == Some(OF_FILE) {
            return self.records(vec![matrix.clone()], vec![], "");
        }
        if self.options.ids.is_none()
            && let Some(reading) = self.runs(matrix)?
        {
            return Ok(reading);
        }
        let mut warnings = vec![];
        let found = match self.options.ids.as_deref() {
            Some("row") => None,
            Some(name) => Some(self.given_ids(name, matrix.dataset, n as u64)?),
            None => match self.beside(matrix)? {
                Beside::Ids(found) => Some(found),
                Beside::None { passed_over } => {
                    if let Some(first) = passed_over.first() {
                        warnings.push(format!(
                            "{}: rows are numbered, since nothing beside {at} is clearly its ids; if \"{first}\" holds them, add --ids {}",
                            self.file.path.display(),
                            quoted_path(Path::new(first))
                        ));
                    }
                    None
                }
            },
        };
        let (ids, from) = match found {
            Some(found) => (Ids::Rows(found.ids), format!("ids in {}", quoted_place(&found.from))),
            None => {
                // Row numbers alone would collide and change when files are added; those of one of several matrices of
                // a file need its name as well.
                let nested = self.options.dataset.is_some() && matrix.dataset.path.contains('/');
                let prefix = if nested { matrix.dataset.path.clone() } else { self.stem() };
                (Ids::Numbered(prefix), "no ids".to_owned())
            }
        };
        let reason = match self.writer {
            Writer::AnnData(_) => format!("AnnData: rows are cells, {from}"),
            Writer::Matlab => format!("MATLAB, which stores matrices transposed; {from}"),
            Writer::Other => format!(
                "{} dataset of rows, {from}",
                if self.options.dataset.is_some() { "the chosen" } else { "the only" }
            ),
        };
        Ok(Reading {
            layout: Layout::Matrix,
            dataset_text: format!("{at}, {from}"),
            pieces: vec![piece(matrix, n, ids)],
            reason,
            warnings,
        })
    }

    /// Matrices in groups of their own, each with ids in its group.
    fn matrices_with_ids(&self, candidates: &[Candidate<'a>]) -> Result<Option<Reading<'a>>> {
        let groups: HashSet<&str> = candidates.iter().map(|c| group_of(&c.dataset.path)).collect();
        let one_name = candidates.iter().all(|c| last(&c.dataset.path) == last(&candidates[0].dataset.path));
        if groups.len() < candidates.len() || !one_name {
            return Ok(None);
        }
        // Splits, layers and models are sets of their own; a group that all lie in may be called like one.
        let parts: Vec<Vec<&str>> = groups.iter().map(|group| group.split('/').collect()).collect();
        let differ = |at: usize| parts.iter().any(|path| path.get(at) != parts[0].get(at));
        let fields = |at: usize| parts.iter().all(|path| path.get(at).is_some_and(|name| is_field(name)));
        if (0..parts[0].len()).any(|at| differ(at) && fields(at)) {
            return Ok(None);
        }
        let mut pieces = vec![];
        for matrix in candidates {
            let group = group_of(&matrix.dataset.path);
            let own: Vec<Dataset> =
                self.survey.datasets.iter().filter(|d| group_of(&d.path) == group).cloned().collect();
            let n = self.to_usize(matrix)?;
            match ids::find(self.file, matrix.dataset, n as u64, &own)? {
                Beside::Ids(found) => pieces.push(piece(matrix, n, Ids::Rows(found.ids))),
                Beside::None { .. } => return Ok(None),
            }
        }
        let text = format!("{} matrices with ids beside each", pieces.len());
        Ok(Some(Reading {
            layout: Layout::Matrix,
            dataset_text: text.clone(),
            pieces,
            reason: text,
            warnings: vec![],
        }))
    }

    /// The datasets that a pattern matched: records whose ids are what its stars stand for, or matrices with ids.
    fn matched(&self, candidates: Vec<Candidate<'a>>, pattern: &Pattern<'_>) -> Result<Reading<'a>> {
        if candidates.len() > 1
            && candidates.iter().all(Candidate::is_matrix)
            && self.options.ids.is_none()
            && let Some(reading) = self.matrices_with_ids(&candidates)?
        {
            return Ok(reading);
        }
        let matched =
            |c: &Candidate<'_>| pattern.matches(&c.dataset.path).map_or(String::new(), |(id, _)| id);
        let ids = candidates.iter().map(matched).collect();
        self.records(candidates, ids, "ids are what `*` stands for")
    }

    /// One id per dataset.
    fn per_id(&self, candidates: Vec<Candidate<'a>>, chosen: &Chosen<'_>) -> Result<Reading<'a>> {
        let all: Vec<(&Dataset, u64)> = candidates.iter().map(|c| (c.dataset, c.n_rows())).collect();
        let named = self.names_of_attribute(&candidates, "original_id", chosen)?;
        let ids = records::ids(&all, &chosen.within, named.is_some())
            .map_err(|several| self.several_of(several, &candidates))?;
        match named {
            Some(named) => self.records(candidates, named, "ids are the attributes original_id"),
            None if self.file.is_named_by_its_path() => {
                self.records(candidates, ids, "the id is the file's name")
            }
            None => self.records(candidates, ids, "ids are what differs between the paths of the datasets"),
        }
    }

    /// The text of an attribute of each candidate; `None` where one has none.
    fn names_of_attribute(
        &self,
        all: &[Candidate<'_>],
        name: &str,
        chosen: &Chosen<'_>,
    ) -> Result<Option<Vec<String>>> {
        if chosen.exact {
            return Ok(None);
        }
        all.iter().map(|c| self.file.text_of_attribute(&c.dataset.path, name)).collect()
    }

    /// Each candidate is what belongs to one id.
    fn records(&self, candidates: Vec<Candidate<'a>>, ids: Vec<String>, reason: &str) -> Result<Reading<'a>> {
        let (ids, reason) = match self.options.ids.as_deref() {
            None => (ids, reason.to_owned()),
            Some("row") => {
                let stem = self.stem();
                ((0..candidates.len()).map(|n| format!("{stem}:{n}")).collect(), "ids are numbers".to_owned())
            }
            Some(OF_FILE) if candidates.len() == 1 => {
                (vec![self.stem()], "the id is the file's name".to_owned())
            }
            Some(name) => {
                let attribute = name.strip_prefix('@');
                let texts = attribute.map(|attribute| {
                    let text = |c: &Candidate<'_>| {
                        self.file.text_of_attribute(&c.dataset.path, attribute)?.ok_or_else(|| {
                            let what =
                                format!("has no attribute \"{attribute}\" of text; leave out --ids {name}");
                            Error::data(&self.file.path, place(c.dataset), what)
                        })
                    };
                    candidates.iter().map(text).collect::<Result<Vec<_>>>()
                });
                let Some(texts) = texts else {
                    return Err(self.error(format!(
                        "has a dataset per id, so that --ids {name} names nothing; leave it out, or name an attribute of each dataset with --ids @NAME"
                    )));
                };
                (texts?, format!("ids are the attributes {}", attribute.unwrap_or_default()))
            }
        };
        self.check_widths(&candidates)?;
        let layout = if candidates.iter().any(Candidate::is_matrix) {
            Layout::ResiduesPerId
        } else {
            Layout::VectorPerId
        };
        let dataset_text = match &candidates[..] {
            [one] => place(one.dataset),
            all => format!("{} datasets", all.len()),
        };
        let mut pieces = Vec::with_capacity(candidates.len());
        for (candidate, id) in candidates.iter().zip(ids) {
            let ids = if candidate.is_matrix() { Ids::Residues(id) } else { Ids::One(id) };
            pieces.push(piece(candidate, self.to_usize(candidate)?, ids));
        }
        Ok(Reading { layout, pieces, dataset_text, reason, warnings: vec![] })
    }

    /// Rows have one width.
    fn check_widths(&self, candidates: &[Candidate<'_>]) -> Result<()> {
        let with_rows = || candidates.iter().filter(|c| c.n_rows() > 0);
        let first = with_rows().next().map(Candidate::width);
        if with_rows().all(|c| Some(c.width()) == first) {
            return Ok(());
        }
        let mut widths: BTreeMap<u64, Vec<&Dataset>> = BTreeMap::new();
        for c in with_rows() {
            widths.entry(c.width()).or_default().push(c.dataset);
        }
        let text = |(width, datasets): (&u64, &Vec<&Dataset>)| {
            format!(
                "{} of {width} values, the first \"/{}\"",
                thousands(datasets.len() as u64),
                datasets[0].path
            )
        };
        let all: Vec<String> = widths.iter().map(text).collect();
        Err(self.error(format!(
            "holds datasets with rows of different widths: {}; name those of one width with --dataset",
            all.join("; ")
        )))
    }

    /// A matrix of residues with a dataset of integers that says where each protein starts or ends.
    fn runs(&self, matrix: &Candidate<'a>) -> Result<Option<Reading<'a>>> {
        let total = self.to_usize(matrix)?;
        let group = group_of(&matrix.dataset.path);
        let mut found: Option<(Vec<usize>, &Dataset)> = None;
        let words = ["ptr", "offset", "boundar", "length", "lens", "start"];
        for dataset in self.survey.datasets.iter().filter(|d| is_integer(d) && group_of(&d.path) == group) {
            let name = last(&dataset.path).to_lowercase();
            let few = size(&dataset.shape) <= 2 * (total as u64) + 2;
            if !few || dataset.shape.is_empty() || !words.iter().any(|word| name.contains(word)) {
                continue;
            }
            let values = self.file.read_integers(dataset)?;
            let ends = match dataset.shape[..] {
                [_, 2] => ends_of_pairs(&values, total),
                _ if name.contains("len") => ends_of_lengths(&values, total),
                _ => ends_of_pointers(&values, total),
            };
            let better = name.contains("emb") || found.is_none();
            if let Some(ends) = ends.filter(|ends| ends.len() < total && better) {
                found = Some((ends, dataset));
            }
        }
        let Some((ends, dataset)) = found else { return Ok(None) };
        let n = ends.len();
        let mut warnings = vec![];
        let (ids, from) = match self.ids_of_runs(group, n)? {
            Some(found) => (found.ids, format!("ids in {}", quoted_place(&found.from))),
            None => {
                warnings.push(format!(
                    "{}: its {} proteins are numbered, since no ids of their own were found",
                    self.file.path.display(),
                    thousands(n as u64)
                ));
                let stem = self.stem();
                ((0..n).map(|k| format!("{stem}:{k}")).collect(), "no ids".to_owned())
            }
        };
        Ok(Some(Reading {
            layout: Layout::ResiduesPerId,
            dataset_text: format!("{}, {from}", place(matrix.dataset)),
            pieces: vec![piece(matrix, total, Ids::Runs(Box::new((ids, ends))))],
            reason: format!("rows of a protein follow one another, as \"/{}\" says; {from}", dataset.path),
            warnings,
        }))
    }

    /// Ids of `n` proteins in `group`: texts, or bytes one after another with where each ends (scikit-bio).
    fn ids_of_runs(&self, group: &str, n: usize) -> Result<Option<Found>> {
        let inside = || self.survey.datasets.iter().filter(|d| group_of(&d.path) == group);
        let is_bytes = |d: &&Dataset| d.kind == (Kind::Integer { size: 1 }) && d.shape.len() == 1;
        for dataset in inside().filter(|d| d.kind == Kind::Text && is_column(d, n as u64)) {
            if let Some(ids) = ids::read_ids(self.file, dataset)?
                && ids.iter().collect::<HashSet<_>>().len() == n
            {
                return Ok(Some(Found { ids, from: format!("/{}", dataset.path) }));
            }
        }
        let bytes = inside().filter(is_bytes).find(|d| last(&d.path) == "id");
        let ends = inside().find(|d| last(&d.path) == "idptr" && is_integer(d));
        let (Some(bytes), Some(ends)) = (bytes, ends) else { return Ok(None) };
        let text: Vec<u8> = self.file.read_integers(bytes)?.into_iter().map(|byte| byte as u8).collect();
        let Some(ends) =
            ends_of_pointers(&self.file.read_integers(ends)?, text.len()).filter(|e| e.len() == n)
        else {
            return Ok(None);
        };
        let mut start = 0;
        let ids: Option<Vec<String>> = ends
            .iter()
            .map(|&end| {
                let id = text.get(start..end)?;
                start = end;
                String::from_utf8(id.to_vec()).ok()
            })
            .collect();
        let distinct = |ids: &Vec<String>| ids.iter().collect::<HashSet<_>>().len() == n;
        Ok(ids.filter(distinct).map(|ids| Found { ids, from: format!("/{}", bytes.path) }))
    }

    fn to_usize(&self, candidate: &Candidate<'_>) -> Result<usize> {
        let n = candidate.n_rows();
        // Row numbers are kept in 32 bits.
        u32::try_from(n).map(|n| n as usize).map_err(|_| {
            Error::data(
                &self.file.path,
                place(candidate.dataset),
                format!("has {n} rows; at most {} can be used: take a part of it", u32::MAX),
            )
        })
    }
}

fn piece<'a>(c: &Candidate<'a>, n_rows: usize, ids: Ids) -> Draft<'a> {
    Draft {
        dataset: c.dataset,
        view: c.view.clone(),
        stored: c.stored,
        n_rows,
        width: c.width(),
        ids,
        clusters: None,
    }
}

/// The ids of `n` rows in the file `path`.
fn of_file(path: &Path, n: u64) -> Result<Found> {
    let found = id_file::read(path)?;
    if found.ids.len() as u64 == n { Ok(found) } else { Err(id_file::unlike(path, found.ids.len(), n)) }
}

fn is_integer(dataset: &Dataset) -> bool {
    matches!(dataset.kind, Kind::Integer { .. })
}

/// Number of values; at most what fits.
fn size(shape: &[u64]) -> u64 {
    shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n))
}

/// Ends of runs from their ends, from their starts and the last end, or from their starts alone.
fn ends_of_pointers(values: &[i64], total: usize) -> Option<Vec<usize>> {
    let values: Vec<usize> = values.iter().map(|&v| usize::try_from(v).ok()).collect::<Option<_>>()?;
    let (first, last) = (*values.first()?, *values.last()?);
    if !values.is_sorted() || last > total {
        return None;
    }
    match (first == 0, last == total) {
        (true, true) if values.len() > 1 => Some(values[1..].to_vec()),
        (false, true) => Some(values),
        (true, false) => Some(values[1..].iter().copied().chain([total]).collect()),
        _ => None,
    }
}

fn ends_of_lengths(values: &[i64], total: usize) -> Option<Vec<usize>> {
    let mut end = 0usize;
    let ends: Option<Vec<usize>> = values
        .iter()
        .map(|&len| {
            end = end.checked_add(usize::try_from(len).ok()?)?;
            Some(end)
        })
        .collect();
    ends.filter(|_| end == total)
}

/// Ends of runs from pairs of start and length, or start and end.
fn ends_of_pairs(values: &[i64], total: usize) -> Option<Vec<usize>> {
    let second: Vec<i64> = values.chunks_exact(2).map(|pair| pair[1]).collect();
    let starts = |ends: &[usize]| {
        let before = std::iter::once(0).chain(ends.iter().copied());
        values.chunks_exact(2).zip(before).all(|(pair, end)| pair[0] == end as i64)
    };
    let lengths = ends_of_lengths(&second, total).filter(|ends| starts(ends));
    lengths.or_else(|| {
        let ends: Option<Vec<usize>> = second.iter().map(|&end| usize::try_from(end).ok()).collect();
        ends.filter(|ends| ends.last() == Some(&total) && starts(ends))
    })
}

fn shape_text(shape: &[u64]) -> String {
    shape.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// `"/a" (3, 4), "/b" (5, 4), ... (12 in all)`.
fn listed<'a>(datasets: impl Iterator<Item = &'a Dataset>) -> String {
    const SHOWN: usize = 6;
    let all: Vec<String> = datasets.map(|d| format!("\"/{}\" ({})", d.path, shape_text(&d.shape))).collect();
    let more = if all.len() > SHOWN { format!(", ... ({} in all)", all.len()) } else { String::new() };
    format!("{}{more}", all[..all.len().min(SHOWN)].join(", "))
}

fn quoted_place(from: &str) -> String {
    if from.starts_with('/') { format!("\"{from}\"") } else { from.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_by_ends_starts_lengths_and_pairs() {
        for values in [&[2, 5, 9][..], &[0, 2, 5, 9], &[0, 2, 5]] {
            assert_eq!(ends_of_pointers(values, 9), Some(vec![2, 5, 9]), "{values:?}");
        }
        for values in [&[2, 5, 8][..], &[5, 2, 9], &[-1, 9], &[2, 5, 10], &[]] {
            assert_eq!(ends_of_pointers(values, 9), None, "{values:?}");
        }
        assert_eq!(ends_of_lengths(&[2, 3, 4], 9), Some(vec![2, 5, 9]));
        assert_eq!(ends_of_lengths(&[2, 3], 9), None);
        assert_eq!(ends_of_pairs(&[0, 2, 2, 3, 5, 4], 9), Some(vec![2, 5, 9]));
        assert_eq!(ends_of_pairs(&[0, 2, 2, 5, 5, 9], 9), Some(vec![2, 5, 9]));
        assert_eq!(ends_of_pairs(&[0, 2, 3, 3, 5, 4], 9), None);
    }
}
