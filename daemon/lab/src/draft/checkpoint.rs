//! What training has come to, on the disk.
//!
//! Invariant: the file is one that was written whole: it is written beside, brought to the disk and renamed. It says what
//! it belongs to, and is not taken for anything else.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Tensor, safetensors};

use super::select::Plan;
use super::train::{State, Trained};

const PURPOSE: &str = "andon.purpose";
const PLAN: &str = "andon.plan";
const STEP: &str = "andon.step";

/// Writes a file beside `path` and moves it there: it has the name when it is whole, or not at all.
pub(super) fn whole(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".half");
    let beside = PathBuf::from(beside);
    let written = write(&beside).and_then(|()| Ok(File::open(&beside)?.sync_all()?));
    let moved = written.and_then(|()| Ok(std::fs::rename(&beside, path)?));
    if moved.is_err() {
        drop(std::fs::remove_file(&beside));
    }
    moved.with_context(|| format!("cannot write `{}`", path.display()))
}

pub(super) fn save(path: &Path, purpose: &str, plan: &Plan, state: &State) -> Result<()> {
    let text = |text: &str| Tensor::from_slice(text.as_bytes(), text.len(), &Device::Cpu);
    let mut tensors = HashMap::new();
    tensors.insert(PURPOSE.to_owned(), text(purpose)?);
    tensors.insert(PLAN.to_owned(), text(&serde_json::to_string(plan)?)?);
    let step = u32::try_from(state.step)?;
    tensors.insert(STEP.to_owned(), Tensor::new(&[step], &Device::Cpu)?);
    for (name, weight) in &state.weights {
        let tensor = |values: &[f32]| Tensor::from_slice(values, &weight.dims[..], &Device::Cpu);
        tensors.insert(name.clone(), tensor(&weight.values)?);
        tensors.insert(format!("{name}.first"), tensor(&weight.first)?);
        tensors.insert(format!("{name}.second"), tensor(&weight.second)?);
    }
    whole(path, |path| Ok(safetensors::save(&tensors, path)?))
}

/// What is there, if something is, and what it belongs to: `purpose`, unless that may be any.
pub(super) fn load(path: &Path, purpose: Option<&str>) -> Result<Option<(String, Plan, State)>> {
    if !path.exists() {
        return Ok(None);
    }
    read(path, purpose)
        .with_context(|| format!("`{}`", path.display()))
        .map(Some)
}

fn read(path: &Path, purpose: Option<&str>) -> Result<(String, Plan, State)> {
    let mut tensors = safetensors::load(path, &Device::Cpu)?;
    let mut text = |name: &str| -> Result<String> {
        let tensor = tensors
            .remove(name)
            .with_context(|| format!("no `{name}`"))?;
        Ok(String::from_utf8(tensor.to_vec1()?)?)
    };
    let found = text(PURPOSE)?;
    ensure!(
        purpose.is_none_or(|purpose| found == purpose),
        "training was begun on other answers or with other options; remove it, or name another --work folder"
    );
    let plan = serde_json::from_str(&text(PLAN)?)?;
    let step = tensors.remove(STEP).context("no step")?.to_vec1::<u32>()?;
    let [step] = step[..] else {
        bail!("not one step")
    };
    let mut state = State {
        step: step as usize,
        ..State::default()
    };
    for (name, tensor) in &tensors {
        if name.ends_with(".first") || name.ends_with(".second") {
            continue;
        }
        let values = |name: &str| -> Result<Vec<f32>> {
            let other = tensors.get(name).with_context(|| format!("no `{name}`"))?;
            ensure!(
                other.dims() == tensor.dims(),
                "`{name}` has another shape than its weight"
            );
            Ok(other.flatten_all()?.to_vec1()?)
        };
        let weight = Trained {
            dims: tensor.dims().to_vec(),
            values: values(name)?,
            first: values(&format!("{name}.first"))?,
            second: values(&format!("{name}.second"))?,
        };
        state.weights.insert(name.clone(), weight);
    }
    Ok((found, plan, state))
}

#[cfg(test)]
mod tests {
    use super::{load, save};
    use crate::draft::select::Plan;
    use crate::draft::train::State;
    use std::collections::BTreeMap;

    #[test]
    fn what_was_saved_is_loaded_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("checkpoint");
        let plan = Plan {
            layers: vec![0, 2],
            kv_heads: vec![vec![0], vec![1]],
            neurons: vec![vec![3], vec![4]],
            tokens: vec![1, 2],
        };
        let weight = (vec![2, 2], vec![1.0, -2.0, 3.0, 0.1]);
        let mut state = State::new(BTreeMap::from([("a.weight".to_owned(), weight)]));
        state.step = 7;
        assert!(load(&path, Some("a")).expect("nothing there").is_none());
        save(&path, "a", &plan, &state).expect("saved");
        let saved = Some(("a".to_owned(), plan.clone(), state.clone()));
        assert_eq!(load(&path, Some("a")).expect("loaded"), saved);
        assert_eq!(load(&path, None).expect("loaded"), saved);
        let other = load(&path, Some("b")).expect_err("another purpose");
        let other = format!("{other:#}");
        assert!(other.contains("--work"), "{other}");
        std::fs::write(&path, b"nonsense").expect("written");
        assert!(load(&path, Some("a")).is_err());
        let missing = folder.path().join("no").join("checkpoint");
        let error = format!(
            "{:#}",
            save(&missing, "a", &plan, &state).expect_err("no folder")
        );
        assert!(error.contains("cannot write"), "{error}");
    }
}
