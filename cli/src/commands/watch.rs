//! A watch on grants that survives a lost connection: it connects again, and the broker lists every grant again.

use postern_proto::v1;
use tonic::Streaming;

use super::retry::Retry;
use crate::connect::BrokerClient;
use crate::error::Failure;

/// An event of a watch.
pub(super) enum WatchEvent {
    /// The present state of a grant.
    Grant(Box<v1::Grant>),
    /// The broker has listed every grant that the filter admits.
    Listed,
}

/// The watch.
pub(super) struct GrantWatch<'a> {
    broker: &'a BrokerClient,
    filter: v1::GrantFilter,
    stream: Option<Streaming<v1::WatchGrantsResponse>>,
    retry: Retry,
}

impl<'a> GrantWatch<'a> {
    pub(super) fn new(broker: &'a BrokerClient, filter: v1::GrantFilter) -> Self {
        Self { broker, filter, stream: None, retry: Retry::for_stream() }
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// The broker refuses, or stays away.
    pub(super) async fn next(&mut self) -> Result<WatchEvent, Failure> {
        loop {
            match self.try_next().await {
                Ok(v1::WatchGrantsResponse { grant }) => {
                    self.retry.answered();
                    return Ok(grant.map_or(WatchEvent::Listed, |grant| WatchEvent::Grant(Box::new(grant))));
                }
                Err(failure) => {
                    self.stream = None;
                    self.retry.pause_after(failure).await?;
                }
            }
        }
    }

    async fn try_next(&mut self) -> Result<v1::WatchGrantsResponse, Failure> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = v1::WatchGrantsRequest { filter: Some(self.filter.clone()) };
                let stream = self.broker.call(self.broker.access().watch_grants(request)).await?;
                self.stream.insert(stream)
            }
        };
        match stream.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(self.broker.lost("the broker ended the stream".to_owned())),
            Err(status) => Err(self.broker.failure(status)),
        }
    }
}
