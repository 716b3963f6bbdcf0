//! The key of every object. `docs/format.md` shows a real listing.
//!
//! A prefix per cluster and kind, and for WAL per block of at most 256 segments: whatever is asked, a listing of one short
//! prefix answers it.

use crate::postgres::lsn::SystemId;
use crate::postgres::wal::name::{SegmentName, WalFile};
use crate::storage::ObjectKey;

/// The one object that says: this is a lastgood repository.
pub fn repository() -> ObjectKey {
    ObjectKey::new("lastgood.json")
}

/// Whether an object is deleted or replaced in the ordinary course of things, so that no lock may hold it: leases and probes; notes
/// of which the newest counts, or that go with what they are about; roll-ups, which are made again from the segments. All else
/// is written once and stays until it is expired.
pub fn is_passing(key: &str) -> bool {
    let mut parts = key.split('/');
    matches!(
        (parts.next(), parts.nth(1), parts.nth(1)),
        (Some("probe"), ..)
            | (Some("clusters"), Some("leases" | "expired" | "verified" | "locks"), _)
            | (Some("clusters"), Some("wal"), Some("gone" | "index"))
    )
}

/// Folder with one folder for each cluster.
pub const CLUSTERS: &str = "clusters/";

/// Folder with the audit of the whole repository; a folder for each thousand entries.
pub const AUDIT: &str = "audit/";

/// Entry `number` of the audit, from 1.
pub fn audit_entry(number: u64) -> ObjectKey {
    ObjectKey::new(format!("{AUDIT}{:07}/{number:010}", number / 1000))
}

/// Where keyrings are.
pub const KEYRINGS: &str = "keys/";

/// A keyring; the highest key counts.
pub fn keyring(epoch: u32, number: u32) -> ObjectKey {
    ObjectKey::new(format!("{KEYRINGS}{epoch:06}-{number:06}"))
}

/// Keys of one cluster.
#[derive(Debug, Clone)]
pub struct Layout {
    root: String,
}

impl Layout {
    /// `cluster` was checked by `config::is_cluster_name`.
    pub fn new(cluster: &str) -> Layout {
        Layout { root: format!("{CLUSTERS}{cluster}/") }
    }

    pub fn records(&self) -> String {
        format!("{}record/", self.root)
    }

    pub fn record(&self, number: u32) -> ObjectKey {
        ObjectKey::new(format!("{}{number:08}", self.records()))
    }

    pub fn manifests(&self) -> String {
        format!("{}snapshots/", self.root)
    }

    pub fn manifest(&self, snapshot: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{snapshot}", self.manifests()))
    }

    /// Folder with one folder for each snapshot that wrote file lists, committed or not.
    pub fn all_files(&self) -> String {
        format!("{}files/", self.root)
    }

    pub fn files(&self, snapshot: &str, number: u32) -> ObjectKey {
        ObjectKey::new(format!("{}{snapshot}/{number:06}", self.all_files()))
    }

    /// The packs that a snapshot refers to.
    pub fn pack_table(&self, snapshot: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{snapshot}/packs", self.all_files()))
    }

    /// The segments that a snapshot needs to be consistent.
    pub fn wal_table(&self, snapshot: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{snapshot}/wal", self.all_files()))
    }

    /// What was called what when the snapshot was taken.
    pub fn catalogue(&self, snapshot: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{snapshot}/catalogue", self.all_files()))
    }

    /// Folder with one folder for each snapshot that wrote packs, committed or not.
    pub fn all_packs(&self) -> String {
        format!("{}packs/", self.root)
    }

    /// `name` is `<snapshot>/<pack>`, as file maps say it.
    pub fn pack(&self, name: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{name}", self.all_packs()))
    }

    /// Notes about snapshots whose manifests are gone, and whose packs may live on under newer ones.
    pub fn all_expired(&self) -> String {
        format!("{}expired/", self.root)
    }

    pub fn expired(&self, snapshot: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{snapshot}", self.all_expired()))
    }

    /// What people said of snapshots that are much smaller than the one before.
    pub fn all_accepted(&self) -> String {
        format!("{}accepted/", self.root)
    }

    pub fn accepted(&self, snapshot: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{snapshot}", self.all_accepted()))
    }

    /// When what was read last; the highest number counts.
    pub fn verified(&self) -> String {
        format!("{}verified/", self.root)
    }

    pub fn verified_number(&self, number: u32) -> ObjectKey {
        ObjectKey::new(format!("{}{number:08}", self.verified()))
    }

    /// Which objects were locked for longer than when they were written.
    pub fn locks(&self) -> String {
        format!("{}locks/", self.root)
    }

    pub fn locks_number(&self, number: u32) -> ObjectKey {
        ObjectKey::new(format!("{}{number:08}", self.locks()))
    }

    /// Which snapshots people want to keep; a folder for each snapshot, and the highest number in it counts.
    pub fn keeps(&self) -> String {
        format!("{}pins/", self.root)
    }

    pub fn keep(&self, snapshot: &str, number: u32) -> ObjectKey {
        ObjectKey::new(format!("{}{snapshot}/{number:08}", self.keeps()))
    }

    pub fn leases(&self) -> String {
        format!("{}leases/", self.root)
    }

    /// A beat of a pin.
    pub fn pin(&self, holder: &str, beat: u32) -> ObjectKey {
        ObjectKey::new(format!("{}{holder}/{beat:08}", self.leases()))
    }

    /// Everything about one thing that only one may hold.
    pub fn lease(&self, resource: &str) -> String {
        format!("{}{resource}/", self.leases())
    }

    /// A beat or an end of one turn at holding it.
    pub fn lease_epoch(&self, resource: &str, epoch: u32, name: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{epoch:08}/{name}", self.lease(resource)))
    }

    /// Where the reports of drills and restores are.
    pub fn reports(&self) -> String {
        format!("{}reports/", self.root)
    }

    pub fn report(&self, id: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{id}", self.reports()))
    }

    /// Where alerts are; a folder for each.
    pub fn alerts(&self) -> String {
        format!("{}alerts/", self.root)
    }

    pub fn alert(&self, id: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{id}/alert", self.alerts()))
    }

    pub fn acknowledgement(&self, id: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{id}/acknowledged", self.alerts()))
    }

    /// Folder with one folder for each history that has WAL.
    pub fn all_wal(&self) -> String {
        format!("{}wal/", self.root)
    }

    /// Where one history's segments are; a folder for each block.
    pub fn segments(&self, system: SystemId) -> String {
        format!("{}wal/{system}/segments/", self.root)
    }

    /// A block: all segments that share the first 22 of their name's 24 digits, at most 256.
    pub fn block(&self, system: SystemId, segment: SegmentName) -> String {
        let name = segment.to_string();
        format!("{}{}/", self.segments(system), &name[..22])
    }

    /// Where roll-ups of one level are, named after their first segments.
    pub fn rollups(&self, system: SystemId, level: u8) -> String {
        format!("{}wal/{system}/index/{level}/", self.root)
    }

    pub fn rollup(&self, system: SystemId, level: u8, first: SegmentName) -> ObjectKey {
        ObjectKey::new(format!("{}{first}", self.rollups(system, level)))
    }

    /// What was expired of one history's WAL; the highest number counts.
    pub fn gone(&self, system: SystemId) -> String {
        format!("{}wal/{system}/gone/", self.root)
    }

    pub fn gone_number(&self, system: SystemId, number: u32) -> ObjectKey {
        ObjectKey::new(format!("{}{number:08}", self.gone(system)))
    }

    pub fn backups(&self, system: SystemId) -> String {
        format!("{}wal/{system}/backup/", self.root)
    }

    pub fn histories(&self, system: SystemId) -> String {
        format!("{}wal/{system}/history/", self.root)
    }

    pub fn torn(&self, system: SystemId) -> String {
        format!("{}wal/{system}/torn/", self.root)
    }

    pub fn partials(&self, system: SystemId) -> String {
        format!("{}wal/{system}/partial/", self.root)
    }

    /// Each kind of archived file has a prefix of its own, so that no listing of one meets another (rule 34).
    pub fn wal(&self, system: SystemId, file: &WalFile) -> ObjectKey {
        ObjectKey::new(match file {
            WalFile::Segment(segment) => format!("{}{segment}", self.block(system, *segment)),
            WalFile::History(_) => format!("{}{file}", self.histories(system)),
            WalFile::Torn(..) => format!("{}{file}", self.torn(system)),
            WalFile::Partial(_) => format!("{}{file}", self.partials(system)),
            WalFile::Backup(..) => format!("{}{file}", self.backups(system)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_the_format_says() {
        let layout = Layout::new("shop");
        let key = |file: &str| layout.wal(SystemId(7), &file.parse().unwrap()).to_string();
        assert_eq!(
            key("00000001000000A2000000FF"),
            "clusters/shop/wal/7/segments/00000001000000A2000000/00000001000000A2000000FF"
        );
        assert_eq!(key("00000002.history"), "clusters/shop/wal/7/history/00000002.history");
        assert!(key("00000001000000A2000000FF.00000028.backup").starts_with("clusters/shop/wal/7/backup/"));
        assert_eq!(layout.pack("20261121T010000Z-ab12/d000001").as_str(), "clusters/shop/packs/20261121T010000Z-ab12/d000001");
    }

    #[test]
    fn what_is_deleted_or_replaced_every_day_is_passing_and_nothing_else_is() {
        let layout = Layout::new("locks");
        let (id, system) = ("20261121T010000Z-ab12", SystemId(7));
        let segment = SegmentName::new(crate::postgres::lsn::Timeline(1), 5, 16 << 20);
        let passing = [
            ObjectKey::new("probe/0123"),
            layout.pin("db1-1", 3),
            layout.lease_epoch("backup", 1, "00000001"),
            layout.expired(id),
            layout.verified_number(1),
            layout.locks_number(1),
            layout.gone_number(system, 1),
            layout.rollup(system, 1, segment),
        ];
        let lasting = [
            repository(),
            audit_entry(1),
            keyring(1, 1),
            layout.record(1),
            layout.manifest(id),
            layout.files(id, 1),
            layout.pack_table(id),
            layout.pack("20261121T010000Z-ab12/d000001"),
            layout.accepted(id),
            layout.keep(id, 1),
            layout.report("r"),
            layout.alert("a"),
            layout.wal(system, &WalFile::Segment(segment)),
            layout.wal(system, &"00000002.history".parse().unwrap()),
        ];
        passing.iter().for_each(|key| assert!(is_passing(key.as_str()), "{key}"));
        lasting.iter().for_each(|key| assert!(!is_passing(key.as_str()), "{key}"));
    }
}
