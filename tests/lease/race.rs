//! Many want the same lease at the same moment, on every kind of store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lastgood::repo::RepoError;
use lastgood::repo::lease::{BACKUP, Exclusive, at_work};
use lastgood::repo::repository::{Cluster, Repository};
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::Storage;
use lastgood::storage::fs::DirectoryStorage;
use lastgood::storage::limit::Limit;
use lastgood::storage::memory::MemoryStorage;
use lastgood::storage::s3::S3Storage;

use crate::support::garage::{BUCKET, Garage};
use crate::support::s3::S3Server;

const TAKERS: usize = 12;

async fn cluster(store: Arc<dyn Storage>) -> Cluster {
    Repository::open_or_create(store, &Keys::default(), None).await.unwrap().0.cluster("shop")
}

/// Rounds of takers that begin together; answers how many rounds had a holder.
async fn race(store: Arc<dyn Storage>, rounds: usize) -> usize {
    let cluster = cluster(store).await;
    let mut held = 0;
    for round in 0..rounds {
        let begin = Arc::new(tokio::sync::Barrier::new(TAKERS));
        let takers: Vec<_> = (0..TAKERS)
            .map(|taker| {
                let (cluster, begin) = (cluster.clone(), begin.clone());
                tokio::spawn(async move {
                    begin.wait().await;
                    Exclusive::take(&cluster, BACKUP, "backup", &format!("{round}-{taker}")).await
                })
            })
            .collect();
        let mut holders = Vec::new();
        let mut named = BTreeSet::new();
        for taker in takers {
            match taker.await.unwrap() {
                Ok(lease) => holders.push(lease),
                Err(RepoError::Held { holder, .. }) => drop(named.insert(holder)),
                Err(RepoError::Busy { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(holders.len() <= 1, "round {round}: {} hold at once", holders.len());
        if let Some(holder) = holders.pop() {
            holder.confirm().await.unwrap();
            let living = at_work(&cluster).await.unwrap();
            assert_eq!(living.len(), 1, "{living:?}");
            holder.release().await;
            held += 1;
        }
        assert!(at_work(&cluster).await.unwrap().is_empty());
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_takers_holds_the_lease_in_memory() {
    assert_eq!(race(Arc::new(MemoryStorage::new()), 40).await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_takers_holds_the_lease_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(race(Arc::new(DirectoryStorage::new(dir.path())), 20).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_takers_holds_the_lease_in_s3() {
    let server = S3Server::start().await;
    let store = S3Storage::connect(crate::support::s3::BUCKET, "", &server.config()).await.unwrap();
    assert_eq!(race(Arc::new(Limit::new(store, 16)), 10).await, 10);
}

/// Garage ignores `If-None-Match`: never two, and nearly always one.
#[tokio::test(flavor = "multi_thread")]
async fn at_most_one_of_many_takers_holds_the_lease_without_conditional_create() {
    let garage = Garage::start().await;
    let store = S3Storage::connect(BUCKET, "", &garage.config()).await.unwrap();
    let held = race(Arc::new(Limit::new(store, 16)), 10).await;
    assert!(held >= 8, "{held} of 10 rounds had a holder");
}

/// Hosts that do not agree on whether the store knows conditional writes exclude each other all the same.
#[tokio::test(flavor = "multi_thread")]
async fn takers_with_and_without_conditional_create_exclude_each_other() {
    let garage = Garage::start().await;
    let connect = async |conditional_create| {
        let config = lastgood::config::S3 { conditional_create, ..garage.config() };
        cluster(Arc::new(S3Storage::connect(BUCKET, "", &config).await.unwrap())).await
    };
    let (with, without) = (connect(true).await, connect(false).await);
    for (first, second) in [(&with, &without), (&without, &with)] {
        let held = Exclusive::take(first, BACKUP, "backup", "first").await.unwrap();
        let refused = Exclusive::take(second, BACKUP, "backup", "second").await.unwrap_err();
        assert!(matches!(refused, RepoError::Held { .. }), "{refused}");
        held.confirm().await.unwrap();
        held.release().await;
    }
    for _ in 0..10 {
        let (one, other) =
            tokio::join!(Exclusive::take(&with, BACKUP, "backup", "one"), Exclusive::take(&without, BACKUP, "backup", "other"));
        assert!(one.is_err() || other.is_err());
        for lease in [one, other].into_iter().flatten() {
            lease.confirm().await.unwrap();
            lease.release().await;
        }
    }
}

/// A stale lease for which many come: one gets it.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_takers_takes_a_stale_lease_over() {
    let (repository, _) = Repository::open_or_create(Arc::new(MemoryStorage::new()), &Keys::default(), None).await.unwrap();
    let cluster = repository.with_lease_s(1).cluster("shop");
    let lease = Exclusive::take(&cluster, BACKUP, "backup", "first").await.unwrap();
    let other = super::store::beats_of_another_host(&cluster, 1).await;
    // Its beats are those of another host now, and nobody adds to them.
    drop(lease);
    let began = lastgood::clock::monotonic();
    loop {
        let takers: Vec<_> = (0..TAKERS)
            .map(|_| {
                let cluster = cluster.clone();
                tokio::spawn(async move { Exclusive::take(&cluster, BACKUP, "backup", "next").await })
            })
            .collect();
        let mut holders = 0;
        let mut leases = Vec::new();
        for taker in takers {
            if let Ok(lease) = taker.await.unwrap() {
                holders += 1;
                leases.push(lease);
            }
        }
        assert!(holders <= 1);
        if holders == 1 {
            assert!(began.elapsed() > Duration::from_secs(1), "{other} was living");
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
