//! Which objects must be restored from an archive class before they can be read.
//!
//! A listing tells the class of each object, and with an optional header whether there is a restored copy of it. A HEAD tells both,
//! and the archive tier of INTELLIGENT_TIERING, which no listing tells.

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{ArchiveStatus, Object, ObjectStorageClass, StorageClass};

use crate::storage::{Page, Tier};

const GLACIER: &str = "GLACIER";
const DEEP_ARCHIVE: &str = "DEEP_ARCHIVE";
const INTELLIGENT_TIERING: &str = "INTELLIGENT_TIERING";

/// As a listing tells.
pub fn of_listing(object: &Object) -> Tier {
    let class = match object.storage_class() {
        Some(ObjectStorageClass::Glacier) => GLACIER,
        Some(ObjectStorageClass::DeepArchive) => DEEP_ARCHIVE,
        Some(ObjectStorageClass::IntelligentTiering) => return Tier::Unknown(INTELLIGENT_TIERING),
        // GLACIER_IR is read like any other.
        _ => return Tier::Ready,
    };
    let has_copy = object
        .restore_status()
        .is_some_and(|status| status.is_restore_in_progress() == Some(false) && status.restore_expiry_date().is_some());
    if has_copy { Tier::Ready } else { Tier::Frozen(class) }
}

/// As a HEAD tells.
pub fn of_head(head: &HeadObjectOutput) -> Tier {
    let class = match (head.storage_class(), head.archive_status()) {
        (Some(StorageClass::Glacier), _) => GLACIER,
        (Some(StorageClass::DeepArchive), _) => DEEP_ARCHIVE,
        (_, Some(ArchiveStatus::ArchiveAccess)) => "INTELLIGENT_TIERING (ARCHIVE_ACCESS)",
        (_, Some(ArchiveStatus::DeepArchiveAccess)) => "INTELLIGENT_TIERING (DEEP_ARCHIVE_ACCESS)",
        (_, Some(_)) => return Tier::Unknown(INTELLIGENT_TIERING),
        _ => return Tier::Ready,
    };
    let has_copy = head.restore().is_some_and(|restore| restore.replace(' ', "").contains("ongoing-request=\"false\""));
    if has_copy { Tier::Ready } else { Tier::Frozen(class) }
}

/// Whether it is worth asking which of the page's objects have restored copies.
pub fn has_frozen(page: &Page) -> bool {
    page.objects.iter().any(|object| matches!(object.tier, Tier::Frozen(_)))
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::primitives::DateTime;
    use aws_sdk_s3::types::RestoreStatus;

    use super::*;

    #[test]
    fn a_listing_freezes_two_classes_unless_it_shows_a_copy() {
        let of = |class: ObjectStorageClass, status: Option<RestoreStatus>| {
            of_listing(&Object::builder().storage_class(class).set_restore_status(status).build())
        };
        let running = RestoreStatus::builder().is_restore_in_progress(true).build();
        let until = DateTime::from_secs(4_000_000_000);
        let done = RestoreStatus::builder().is_restore_in_progress(false).restore_expiry_date(until).build();
        for (class, name) in [(ObjectStorageClass::Glacier, GLACIER), (ObjectStorageClass::DeepArchive, DEEP_ARCHIVE)] {
            assert_eq!(of(class.clone(), None), Tier::Frozen(name));
            assert_eq!(of(class.clone(), Some(running.clone())), Tier::Frozen(name));
            assert_eq!(of(class, Some(done.clone())), Tier::Ready);
        }
        assert_eq!(of(ObjectStorageClass::IntelligentTiering, None), Tier::Unknown(INTELLIGENT_TIERING));
        for class in [ObjectStorageClass::GlacierIr, ObjectStorageClass::Standard, ObjectStorageClass::StandardIa] {
            assert_eq!(of(class, None), Tier::Ready);
        }
        assert_eq!(of_listing(&Object::builder().build()), Tier::Ready, "a store without classes");
    }

    #[test]
    fn a_head_tells_copies_and_the_tiers_that_a_listing_does_not() {
        let head = |class: StorageClass| HeadObjectOutput::builder().storage_class(class);
        assert_eq!(of_head(&head(StorageClass::Glacier).build()), Tier::Frozen(GLACIER));
        let running = head(StorageClass::DeepArchive).restore("ongoing-request=\"true\"").build();
        assert_eq!(of_head(&running), Tier::Frozen(DEEP_ARCHIVE));
        let done = "ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2035 00:00:00 GMT\"";
        assert_eq!(of_head(&head(StorageClass::Glacier).restore(done).build()), Tier::Ready);
        assert_eq!(of_head(&head(StorageClass::GlacierIr).build()), Tier::Ready);
        assert_eq!(of_head(&head(StorageClass::IntelligentTiering).build()), Tier::Ready);
        let archived = head(StorageClass::IntelligentTiering).archive_status(ArchiveStatus::ArchiveAccess).build();
        assert!(matches!(of_head(&archived), Tier::Frozen(class) if class.starts_with(INTELLIGENT_TIERING)));
    }
}
