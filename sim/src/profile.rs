//! Profiles: what kind of runs a seed draws. Files in `configs/sim/`, built into the program.

use serde::Deserialize;
use std::collections::BTreeMap;

/// What kind of runs a seed draws.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// In a sentence.
    pub about: String,
    /// Nodes at the start, from and to.
    pub nodes: (u64, u64),
    /// Length of the safety phase in seconds, from and to.
    pub seconds: (u64, u64),
    /// User operations in it, from and to.
    pub operations: (u64, u64),
    /// Faults in it, from and to.
    pub faults: (u64, u64),
    /// Only one node's user changes anything.
    #[serde(default)]
    pub single_writer: bool,
    /// Of a thousand contents, so many are too large to travel inside an operation.
    #[serde(default)]
    pub big_per_mille: u32,
    /// Of a thousand user operations, so many are made behind the mount.
    #[serde(default)]
    pub direct_per_mille: u32,
    /// How likely each kind of user operation is, as weights. In each run some kinds are left out.
    pub users: BTreeMap<UserKind, u32>,
    /// Nodes have a control plane.
    #[serde(default)]
    pub control: bool,
    /// What users ask of it, from and to.
    #[serde(default)]
    pub asks: (u64, u64),
    /// How likely each kind of request is, as weights. In each run some kinds are left out.
    #[serde(default)]
    pub plane: BTreeMap<PlaneKind, u32>,
    /// How likely each kind of fault is, as weights. In each run some kinds are left out.
    #[serde(default)]
    pub trouble: BTreeMap<FaultKind, u32>,
    /// Delay of a message in microseconds, from and to; drawn once for each run.
    pub delay_us: (u64, u64),
    /// Added to each message, up to this many microseconds, from and to; drawn once for each run.
    pub jitter_us: (u64, u64),
    /// A disk action takes up to this many microseconds.
    pub disk_us: u64,
    /// The greatest difference between two clocks, in milliseconds.
    #[serde(default)]
    pub skew_ms: u64,
    /// The scan after a start begins up to this many milliseconds later, in half of the starts.
    #[serde(default)]
    pub scan_ms: u64,
    /// States that a run over many seeds must reach at least once; see `sometimes`.
    #[serde(default)]
    pub sometimes: Vec<String>,
}

/// A kind of user operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum UserKind {
    Write,
    Edit,
    Open,
    Mkdir,
    Symlink,
    Fifo,
    Link,
    Rename,
    Exchange,
    Rm,
    Rmdir,
    Rmtree,
    Chmod,
    Chown,
    Times,
    Xattr,
    Fsync,
    /// As programs save: by a rename over the old file, or the old one is removed first.
    Save,
}

/// A kind of request to the control plane.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum PlaneKind {
    Put,
    Get,
    Look,
    Del,
    Cas,
    Append,
    /// Grants a lease, puts a key under it, and keeps it alive for a while.
    Lease,
    /// Takes a lock, and gives it back after a while.
    Lock,
    Watch,
    Compact,
    Lead,
    /// A value of some hundred kilobytes.
    Big,
    /// Many small puts at once.
    Burst,
}

/// A kind of fault. Each ends by itself after a while.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum FaultKind {
    Partition,
    OneWay,
    Cut,
    Rate,
    Mischief,
    ProcessCrash,
    MachineCrash,
    CrashInApply,
    KillInApply,
    CleanStop,
    Pause,
    FullDisk,
    SlowDisk,
    FailSync,
    Rot,
    Clock,
    Scan,
    Join,
    Leave,
    Replace,
    Blackout,
    /// The process dies, and comes back long after it was given up.
    LongCrash,
}

const BUILT_IN: &[(&str, &str)] = &[
    ("default", include_str!("../../configs/sim/default.yaml")),
    ("quiet", include_str!("../../configs/sim/quiet.yaml")),
    ("partitions", include_str!("../../configs/sim/partitions.yaml")),
    ("crashes", include_str!("../../configs/sim/crashes.yaml")),
    ("disk", include_str!("../../configs/sim/disk.yaml")),
    ("churn", include_str!("../../configs/sim/churn.yaml")),
    ("acknowledged", include_str!("../../configs/sim/acknowledged.yaml")),
    ("two-nodes", include_str!("../../configs/sim/two-nodes.yaml")),
    ("saves", include_str!("../../configs/sim/saves.yaml")),
    ("control", include_str!("../../configs/sim/control.yaml")),
    ("single-writer", include_str!("../../configs/sim/single-writer.yaml")),
];

/// Names of the profiles that are built in.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(n, _)| *n)
}

impl Profile {
    /// A built-in profile by name, or one from a file whose path holds a `/` or ends in `.yaml`.
    pub fn load(name: &str) -> Result<Profile, String> {
        let text = match BUILT_IN.iter().find(|(n, _)| *n == name) {
            Some((_, text)) => (*text).to_owned(),
            None if name.contains('/') || name.ends_with(".yaml") => {
                std::fs::read_to_string(name).map_err(|e| format!("{name}: {e}"))?
            }
            None => {
                let known: Vec<&str> = names().collect();
                return Err(format!("profile {name:?} is not known; there are {}", known.join(", ")));
            }
        };
        let profile: Profile = serde_yaml::from_str(&text).map_err(|e| format!("profile {name}: {e}"))?;
        profile.check().map_err(|e| format!("profile {name}: {e}"))?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), String> {
        let ranges = [
            ("nodes", self.nodes),
            ("seconds", self.seconds),
            ("operations", self.operations),
            ("faults", self.faults),
            ("asks", self.asks),
            ("delay_us", self.delay_us),
            ("jitter_us", self.jitter_us),
        ];
        for (key, (lo, hi)) in ranges {
            if lo > hi {
                return Err(format!("{key}: {lo} is more than {hi}"));
            }
        }
        if self.nodes.0 == 0 || self.nodes.1 > 9 {
            return Err("nodes: 1 to 9".into());
        }
        for name in &self.sometimes {
            if !crate::sometimes::NAMES.contains(&name.as_str()) {
                return Err(format!("sometimes: {name:?} is not one of {}", crate::sometimes::NAMES.join(", ")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_profile_is_valid() {
        for name in names() {
            Profile::load(name).expect(name);
        }
    }

    #[test]
    fn an_unknown_profile_names_the_known_ones() {
        assert!(Profile::load("defualt").unwrap_err().contains("two-nodes"));
    }
}
