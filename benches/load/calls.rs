//! Makes the calls: closed loop, paced, and connections that do nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::lookup_service_client::LookupServiceClient;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::measure::{Paced, Sample, cpu};
use crate::site::{Site, request};

/// Connections of the load.
pub(crate) const CONNECTIONS: usize = 8;
/// Calls in flight on each.
pub(crate) const STREAMS: usize = 64;
/// Subjects that a cached lookup asks about.
const SUBJECTS: u64 = 256;

/// Who calls one server in one way.
pub(crate) struct Callers {
    clients: Vec<LookupServiceClient<Channel>>,
    requests: Arc<dyn Fn() -> Request<pb::LookupRequest> + Send + Sync>,
}

impl Callers {
    /// Calls about a few subjects again and again or, `fresh`, about a new one each time.
    pub(crate) fn new(site: &Site, address: &str, fresh: bool) -> Self {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(LookupServiceClient::new(site.channel(address)));
        }
        let token: MetadataValue<Ascii> = format!("Bearer {}", site.token()).parse().unwrap();
        // Fresh subjects begin where cached ones end.
        let next = AtomicU64::new(SUBJECTS);
        let requests = Arc::new(move || {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let number = if fresh { number } else { number % SUBJECTS };
            let mut call = Request::new(request(number));
            call.metadata_mut().insert("authorization", token.clone());
            call
        });
        Self { clients, requests }
    }

    /// As many calls as the server answers, all places always taken.
    pub(crate) async fn closed(&self, pid: u32, time: Duration) -> Sample {
        let (begun, start) = (cpu(pid), Instant::now());
        let end = start + time;
        let failed = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for client in &self.clients {
            for _ in 0..STREAMS {
                let (mut client, requests, failed) = (client.clone(), self.requests.clone(), failed.clone());
                tasks.spawn(async move {
                    let mut latencies = Vec::with_capacity(4096);
                    while Instant::now() < end {
                        let sent = Instant::now();
                        match client.lookup(requests()).await {
                            Ok(_) => latencies.push(micros(sent)),
                            Err(status) => note(&failed, &status),
                        }
                    }
                    latencies
                });
            }
        }
        let latencies = tasks.join_all().await.concat();
        Sample::new(latencies, failed.load(Ordering::Relaxed), cpu(pid).saturating_sub(begun), start.elapsed())
    }

    /// One call each time one is due, whether or not the earlier ones have been answered.
    pub(crate) async fn paced(&self, pid: u32, paced: Paced) -> Sample {
        let (begun, start) = (cpu(pid), Instant::now());
        let failed = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let calls = paced.rate * paced.time.as_secs();
        for (number, client) in (0..calls).zip(self.clients.iter().cycle()) {
            let due = start + Duration::from_secs_f64(number as f64 / paced.rate as f64);
            tokio::time::sleep_until(due).await;
            let (mut client, requests, failed) = (client.clone(), self.requests.clone(), failed.clone());
            tasks.spawn(async move {
                match client.lookup(requests()).await {
                    Ok(_) => Some(micros(due)),
                    Err(status) => {
                        note(&failed, &status);
                        None
                    }
                }
            });
        }
        let latencies = tasks.join_all().await.into_iter().flatten().collect();
        Sample::new(latencies, failed.load(Ordering::Relaxed), cpu(pid).saturating_sub(begun), start.elapsed())
    }
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// Counts a failure; the first one is shown.
fn note(failed: &AtomicUsize, status: &tonic::Status) {
    if failed.fetch_add(1, Ordering::Relaxed) == 0 {
        println!("failed: {:?} {}", status.code(), status.message());
    }
}

/// Connections that asked once whether the gateway serves, and then stay silent.
pub(crate) async fn idle_connections(site: &Site, count: usize) -> Vec<HealthClient<Channel>> {
    let mut open = Vec::new();
    for _ in 0..count {
        let mut client = HealthClient::new(site.channel(site.address()));
        client.check(HealthCheckRequest::default()).await.expect("an answer");
        open.push(client);
    }
    open
}
