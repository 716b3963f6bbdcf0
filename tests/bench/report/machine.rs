//! On what machine it was measured.

use std::path::Path;

use crate::settings::Settings;

/// Names and values, for people.
pub fn describe(settings: &Settings) -> Vec<(String, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
        line.map_or("unknown".to_string(), |(_, value)| value.trim().to_string())
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory_kib: f64 = memory.trim_end_matches(" kB").parse().unwrap_or(0.0);
    let entry = |name: &str, value: String| (name.to_string(), value);
    vec![
        entry("CPU", format!("{}, {} cores", field(&read("/proc/cpuinfo"), "model name"), settings.cores)),
        entry("memory", format!("{:.1} GiB", memory_kib / f64::from(1 << 20))),
        entry("kernel", format!("Linux {}", read("/proc/sys/kernel/osrelease").trim())),
        entry("file system", file_system(&settings.work)),
    ]
}

/// The kind and device of the file system with the longest mount point above `path`.
fn file_system(path: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let rows = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|row| row.len() > 3);
    let best = rows.filter(|row| path.starts_with(row[1])).max_by_key(|row| row[1].len());
    best.map_or("unknown".into(), |row| format!("{} on {}", row[2], row[0]))
}
