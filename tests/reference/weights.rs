//! A model file in double precision.

use andon_engine::gguf::Gguf;
use std::collections::HashMap;
use std::path::Path;

/// Rows of weights.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Vec<f64>,
}

/// Tensors by name, and the numbers among the keys, without the architecture's name.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) architecture: String,
    tensors: HashMap<String, Matrix>,
    numbers: HashMap<String, f64>,
    scaling: String,
}

impl Weights {
    pub(crate) fn read(path: &Path) -> Weights {
        let bytes = std::fs::read(path).expect("readable");
        let gguf = Gguf::parse(&bytes).expect("a sound file");
        let architecture = gguf.str("general.architecture").expect("named").to_owned();
        let prefix = format!("{architecture}.");
        let mut numbers = HashMap::new();
        for key in gguf.keys() {
            let Some(name) = key.strip_prefix(&prefix) else {
                continue;
            };
            let number = gguf
                .f32(key)
                .map(f64::from)
                .or_else(|_| gguf.u32(key).map(f64::from));
            if let Ok(number) = number {
                numbers.insert(name.to_owned(), number);
            }
        }
        let tensors = gguf.tensors().iter().map(|tensor| {
            let data = gguf.data(tensor);
            let values = match tensor.ggml_type {
                0 => data
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&bytes| f64::from(f32::from_le_bytes(bytes)))
                    .collect(),
                1 => data
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&bytes| half::f16::from_le_bytes(bytes).to_f64())
                    .collect(),
                other => panic!("type {other} is not a float's"),
            };
            let matrix = Matrix {
                rows: tensor.dims.row_count(),
                columns: tensor.dims.row_elements(),
                values,
            };
            (tensor.name.to_owned(), matrix)
        });
        Weights {
            tensors: tensors.collect(),
            numbers,
            scaling: gguf
                .str_or(&format!("{prefix}rope.scaling.type"), "none")
                .expect("a name")
                .to_owned(),
            architecture,
        }
    }

    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.numbers.get(name).copied()
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.number(name).unwrap_or_else(|| panic!("no {name}")) as usize
    }

    /// The name of the scaling of positions.
    pub(crate) fn scaling(&self) -> &str {
        &self.scaling
    }

    /// `name.weight`.
    pub(crate) fn matrix(&self, name: &str) -> &Matrix {
        let tensor = self.tensors.get(&format!("{name}.weight"));
        tensor.unwrap_or_else(|| panic!("no {name}"))
    }

    /// `name.weight` as a vector, if it is there.
    pub(crate) fn vector(&self, name: &str) -> Option<&[f64]> {
        let tensor = self.tensors.get(&format!("{name}.weight"))?;
        Some(&tensor.values)
    }

    /// `name.bias`, if it is there.
    pub(crate) fn bias(&self, name: &str) -> Option<&[f64]> {
        let tensor = self.tensors.get(&format!("{name}.bias"))?;
        Some(&tensor.values)
    }
}
