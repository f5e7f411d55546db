//! Models made up of numbers, in files of other libraries, and the codes that they give.

use super::*;
use safetensors::tensor::TensorView;

/// Small numbers that differ.
pub fn numbers(count: usize, seed: u32) -> Vec<f32> {
    common::values(count, seed)
}

pub fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A safetensors file of float32 tensors.
pub fn write(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| le_bytes(values)).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The same as `numpy.savez` writes it.
pub fn write_npz(path: &Path, arrays: &[(&str, &[usize], &[f32])]) {
    use npyz::WriterBuilder;
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, shape, values) in arrays {
        let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        let mut bytes = vec![];
        let options = npyz::WriteOptions::new().default_dtype().shape(&shape);
        let mut writer = options.writer(&mut bytes).begin_nd().unwrap();
        writer.extend(values.iter().copied()).unwrap();
        writer.finish().unwrap();
        zip.start_file(format!("{name}.npy"), stored).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// A float32 tensor of a safetensors file.
pub fn tensor(file: &Path, name: &str) -> Vec<f32> {
    let all: BTreeMap<_, _> = tensors(file).into_iter().collect();
    all[name].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Codes (rows, M) of `data.h5` by `sae encode`, of which each row has one at least.
pub fn codes(place: &Place, model: &Path) -> Vec<Vec<f64>> {
    let (model, out) = (model.to_str().unwrap(), place.name("codes.tsv"));
    sae_ok(["encode", model, &place.name("data.h5"), "-o", &out, "--format=tsv", "--overwrite"]);
    let mut codes = BTreeMap::<String, Vec<f64>>::new();
    for line in std::fs::read_to_string(out).unwrap().lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let code = codes.entry(fields[0].into()).or_insert_with(|| vec![0.0; M]);
        code[fields[1].parse::<usize>().unwrap()] = fields[2].parse().unwrap();
    }
    codes.into_values().collect()
}

pub fn assert_same(got: &[Vec<f64>], want: &[Vec<f64>], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().flatten().fold(0.0, |a: f64, &b| a.max(b));
    for (row, (got, want)) in got.iter().zip(want).enumerate() {
        for (latent, (got, want)) in got.iter().zip(want).enumerate() {
            // Sums of 16 products in float32, and biases that were moved.
            assert!((got - want).abs() < 2e-6 * largest, "{what}, row {row}, latent {latent}: {got} {want}");
        }
    }
}
