//! Files of programs that say in the file what it is.

use super::file::{Dataset, File, Kind};
use super::ids::last;
use super::scan::{Survey, group_of};
use crate::error::{Error, Result};
use crate::text::tsv::quoted_path;

/// What wrote a file, where that decides how it is read.
#[derive(Debug, PartialEq)]
pub(super) enum Writer {
    /// AnnData; where the names of its cells are.
    AnnData(CellNames),
    /// MATLAB 7.3, whose matrices lie transposed.
    Matlab,
    /// Anything else.
    Other,
}

/// Where AnnData keeps the names of cells.
#[derive(Debug, PartialEq)]
pub(super) enum CellNames {
    /// A dataset.
    Dataset(String),
    /// A field of the compound dataset `obs`, as before AnnData 0.7.
    Field(&'static str),
    /// Nowhere.
    Nowhere,
}

impl Writer {
    /// What wrote the file.
    ///
    /// # Errors
    /// Attributes that say so are damaged.
    pub fn of(file: &File, survey: &Survey) -> Result<Self> {
        let has = |path: &str| survey.datasets.iter().any(|d| d.path == path);
        let obs =
            survey.datasets.iter().any(|d| d.path.strip_prefix("obs").is_some_and(|rest| !rest.is_empty()));
        let index = if obs { file.text_of_attribute("obs", "_index")? } else { None };
        if index.is_some() || file.text_of_attribute("", "encoding-type")?.as_deref() == Some("anndata") {
            let path = format!("obs/{}", index.as_deref().unwrap_or("_index"));
            let inner = format!("{path}/values");
            let names = if has(&path) {
                CellNames::Dataset(path)
            } else if has(&inner) {
                CellNames::Dataset(inner)
            } else {
                CellNames::Nowhere
            };
            return Ok(Self::AnnData(names));
        }
        let compound = |d: &Dataset| d.path == "obs" && d.kind == Kind::Other("compound records");
        if let Some(obs) = survey.datasets.iter().find(|d| compound(d))
            && has("X")
        {
            let field =
                ["index", "_index"].into_iter().find(|f| matches!(file.read_field(obs, f), Ok(Some(_))));
            return Ok(Self::AnnData(field.map_or(CellNames::Nowhere, CellNames::Field)));
        }
        let some = survey.datasets.iter().filter(|d| !is_matlab_inner(&d.path)).take(8);
        if some.into_iter().any(|d| file.has_attribute(&d.path, "MATLAB_class")) {
            return Ok(Self::Matlab);
        }
        Ok(Self::Other)
    }

    /// Whether a dataset of floats can hold the rows, where nobody chose it.
    pub fn may_hold_rows(&self, dataset: &Dataset) -> bool {
        match self {
            Self::AnnData(_) => {
                let group = group_of(&dataset.path);
                let place = dataset.path == "X" || group == "obsm" || group == "layers";
                place && dataset.shape.len() == 2
            }
            Self::Matlab => {
                !is_matlab_inner(&dataset.path) && dataset.shape.iter().filter(|&&n| n > 1).count() > 1
            }
            Self::Other => true,
        }
    }

    /// The error for a file without rows to read, where the writer says why.
    pub fn no_rows(&self, file: &File, survey: &Survey) -> Option<Error> {
        let sparse = |path: &str| survey.datasets.iter().any(|d| d.path == format!("{path}/indptr"));
        if *self != Self::Other && sparse("X") {
            let path = quoted_path(&file.path);
            return Some(Error::data(
                &file.path,
                "",
                format!(
                    "is AnnData whose X is sparse, without an embedding in obsm; make it dense in Python: `a = anndata.read_h5ad({path:?}); a.X = a.X.toarray(); a.write_h5ad(\"dense.h5ad\")`, or add an embedding to a.obsm"
                ),
            ));
        }
        None
    }
}

fn is_matlab_inner(path: &str) -> bool {
    path.starts_with("#refs#") || path.starts_with("#subsystem#")
}

/// Refuses files that hold something else than embeddings.
///
/// # Errors
/// What the file looks like, and what to do.
pub(super) fn refuse(file: &File, survey: &Survey) -> Result<()> {
    let wrong = |what: String| Err(Error::data(&file.path, "", what));
    let all = &survey.datasets;
    let table = |d: &&Dataset| matches!(d.kind, Kind::Other(_)) && last(&d.path) == "table";
    if let Some(table) = all.iter().find(table)
        && file.has_attribute(group_of(&table.path), "pandas_type")
    {
        return wrong(format!(
            "holds a pandas table (\"/{}\"), whose columns lie row by row among others; write it again with `df.to_hdf(\"new.h5\", key=\"df\", format=\"fixed\")`",
            group_of(&table.path)
        ));
    }
    if file.text_of_attribute("", "version")?.is_some_and(|v| v.starts_with("sae "))
        && file.has_attribute("", "inference")
    {
        return wrong(
            "holds sparse codes that `sae encode` wrote; give the embeddings that they were made of".into(),
        );
    }
    let weights = |d: &Dataset| {
        let name = last(&d.path);
        let name = name.split(':').next().unwrap_or(name);
        let torch = name.ends_with(".weight") || name.ends_with(".bias");
        let numbered = group_of(&d.path).ends_with("vars") && name.bytes().all(|b| b.is_ascii_digit());
        torch || numbered || ["kernel", "weight", "bias", "gamma", "moving_mean"].contains(&name)
    };
    let floats = || all.iter().filter(|d| matches!(d.kind, Kind::Float(_)) && !d.shape.is_empty());
    let keras = file.has_attribute("", "keras_version") || file.has_attribute("", "layer_names");
    // No network has that many, and a file of that many ids is not gone over again.
    const MOST: usize = 10_000;
    let n_weights = if all.len() > MOST { 0 } else { floats().filter(|d| weights(d)).count() };
    if n_weights > 0 && (keras || n_weights * 2 > floats().count()) {
        return wrong(
            "looks like the weights of a network, not embeddings; give what the network made of your data, or name a dataset with --dataset"
                .into(),
        );
    }
    quantised(file, all)
}

/// Integers with a scale beside them are no numbers of their own.
fn quantised(file: &File, all: &[Dataset]) -> Result<()> {
    let integers = |d: &&Dataset| {
        matches!(d.kind, Kind::Integer { size: 1 | 2 }) && d.shape.len() == 2 && d.shape[1] > 1
    };
    let Some(codes) = all.iter().filter(integers).max_by_key(|d| d.shape[0].saturating_mul(d.shape[1]))
    else {
        return Ok(());
    };
    let small =
        |d: &&Dataset| matches!(d.kind, Kind::Float(_)) && d.shape.iter().filter(|&&n| n > 1).count() <= 1;
    let floats = all.iter().filter(|d| matches!(d.kind, Kind::Float(_))).count();
    let attributes = ["scale", "scales", "scale_factor", "quant_scale"];
    if floats == 0 && attributes.iter().any(|name| file.has_attribute(&codes.path, name)) {
        let what = "holds integers with an attribute that is their scale; multiply them by it and write floats, with h5py";
        return Err(Error::data(&file.path, format!("dataset \"/{}\"", codes.path), what));
    }
    let Some(scale) = all.iter().find(small).filter(|_| all.iter().filter(small).count() == floats) else {
        return Ok(());
    };
    let axis = if scale.shape.len() == 1 && scale.shape[0] == codes.shape[0] { "[:, None]" } else { "" };
    Err(Error::data(
        &file.path,
        format!("dataset \"/{}\"", codes.path),
        format!(
            "holds integers, with what looks like their scale in \"/{}\"; write the product as floats in Python: `f[\"rows\"] = f[\"{}\"][:].astype(\"f4\") * f[\"{}\"][:]{axis}`",
            scale.path, codes.path, scale.path
        ),
    ))
}
