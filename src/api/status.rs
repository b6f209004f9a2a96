//! The only table from refusals to statuses: canonical code, what to do, `ErrorInfo`, `RetryInfo`, receipt.

use std::collections::HashMap;

use prost::Message as _;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::convert;
use crate::ids::RequestId;
use crate::lookup::{Reason, Refusal, Refused};
use crate::pb::gateway::ErrorReason;

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "oncegate";
/// Metadata of an error: the encoded `gateway.v1.Receipt`.
pub const RECEIPT: &str = "oncegate-receipt-bin";
/// Metadata of every answer and error: the gateway's id of the request.
pub const REQUEST_ID: &str = "oncegate-request-id";

/// The status that a refused caller gets.
pub fn of(refusal: &Refusal, id: RequestId) -> Status {
    let (code, message) = meaning(refusal.refused.reason);
    let mut metadata = MetadataMap::new();
    if let Some(recorded) = &refusal.recorded {
        let receipt = convert::receipt(recorded, id).encode_to_vec();
        metadata.insert_bin(RECEIPT, MetadataValue::from_bytes(&receipt));
    }
    Status::with_error_details_and_metadata(code, message, details(&refusal.refused), metadata)
}

/// The same as a message, for one item of a collection.
pub fn message_of(refused: &Refused) -> tonic_types::Status {
    let (code, message) = meaning(refused.reason);
    let status = Status::with_error_details(code, message, details(refused));
    // The details of a tonic status are an encoded google.rpc.Status.
    tonic_types::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
        code: code.into(),
        message: message.to_owned(),
        details: Vec::new(),
    })
}

fn details(refused: &Refused) -> ErrorDetails {
    let metadata: HashMap<String, String> =
        refused.metadata.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(name(refused.reason), DOMAIN, metadata);
    if refused.retry_after.is_some() {
        details.set_retry_info(refused.retry_after);
    }
    details
}

/// The name of a reason: that of the enum without its prefix.
pub fn name(reason: Reason) -> &'static str {
    let known = ErrorReason::try_from(reason.number()).unwrap_or(ErrorReason::Internal);
    let name = known.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}

/// Canonical code, and what the caller's developers should do.
#[allow(clippy::match_same_arms, reason = "one row per reason")]
const fn meaning(reason: Reason) -> (Code, &'static str) {
    use Code::{
        Cancelled, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound, PermissionDenied,
        ResourceExhausted, Unauthenticated, Unavailable, Unimplemented,
    };
    match reason {
        Reason::TokenMissing => (Unauthenticated, "send exactly one `authorization: Bearer` token"),
        Reason::TokenMalformed => (Unauthenticated, "the token lacks a claim or has one that is not understood"),
        Reason::TokenUntrusted => (Unauthenticated, "the token's issuer, key or signature is not trusted"),
        Reason::TokenExpired => (Unauthenticated, "the token has expired; ask its issuer for another"),
        Reason::TokenTimeInvalid => (Unauthenticated, "the token's times lie in the future or too far apart"),
        Reason::TokenAudienceMismatch => (Unauthenticated, "the token is meant for another trust domain"),
        Reason::TokenNotBound => (Unauthenticated, "the token is bound to another client certificate"),
        Reason::CertificateExpired => (Unauthenticated, "the client certificate has expired; connect with another"),
        Reason::CertificateUntrusted => (Unauthenticated, "the client certificate is no longer trusted"),
        Reason::ConsumerNotDelegated => (PermissionDenied, "the caller or the issuer may not act for this consumer"),
        Reason::PurposeMismatch => (PermissionDenied, "the request differs from the purpose stated in the token"),

        Reason::RequestMalformed => (InvalidArgument, "the request is not a well-formed message of this RPC"),
        Reason::MessageTooLarge => (ResourceExhausted, "the message is larger than the gateway takes"),
        Reason::MethodUnknown => (Unimplemented, "the gateway has no such RPC"),
        Reason::MatterUnknown => (InvalidArgument, "no such matter; ListMatters names those you may use"),
        Reason::CertificateTypeUnknown => {
            (InvalidArgument, "no such certificate type; ListCertificateTypes names those you may use")
        }
        Reason::CaseIdInvalid => (InvalidArgument, "a case number has 6 to 64 letters, digits, '-', '_' or '.'"),
        Reason::ReadMaskRequired => (InvalidArgument, "name the fields wanted in read_mask; `*` is refused"),
        Reason::FieldUnknown => (InvalidArgument, "a path is named that the certificate type has not"),
        Reason::SubjectNotGiven => (InvalidArgument, "the request has no subject in a role that is needed"),
        Reason::SubjectKeysIncomplete => (InvalidArgument, "give every key of one lookup set of the certificate type"),
        Reason::SubjectKeyInvalid => (InvalidArgument, "a subject's attribute fails its check"),
        Reason::SubjectInvalid => (InvalidArgument, "the list of subjects is not valid"),
        Reason::ClaimInvalid => {
            (InvalidArgument, "send 1 to 32 claims, each about another field and of that field's form")
        }

        Reason::NotGranted => (PermissionDenied, "no grant gives this consumer any of the fields for this matter"),
        Reason::GrantExpired => (PermissionDenied, "the grant has expired; its provider must renew it"),
        Reason::GrantNotYetValid => (PermissionDenied, "the grant is not valid yet"),
        Reason::RoleNotGranted => (PermissionDenied, "the grant covers subjects in other roles"),
        Reason::VerifyOnly => {
            (PermissionDenied, "the grant allows comparing values, not reading them; ask with Verify")
        }
        Reason::NeverShared => (PermissionDenied, "these fields are shared with nobody"),
        Reason::BasisMissing => (
            PermissionDenied,
            "sensitive fields need a citation of the legal basis, or a consent reference, in the token",
        ),
        Reason::Denied => (PermissionDenied, "a rule denies this"),
        Reason::CaseNotOpen => (PermissionDenied, "the case is closed, or the platform knows none of this number"),
        Reason::SubjectNotInCase => (PermissionDenied, "the subject, or its role, is not in the case"),
        Reason::ConsentMissing => (PermissionDenied, "the token's consent reference is not given, or was revoked"),
        Reason::OutsideHours => (PermissionDenied, "the grant holds at other hours, or on working days"),
        Reason::RegionMismatch => (PermissionDenied, "the grant holds for consumers of another region"),
        Reason::BasisNotAccepted => (PermissionDenied, "the grant needs another kind of legal basis in the token"),
        Reason::ConditionUnknown => (Unavailable, "a condition could not be established; try again later"),
        Reason::RecordCondition => (PermissionDenied, "the record may not be shown to this consumer"),

        Reason::RecordNotFound => (NotFound, "the provider has no such record"),
        Reason::RecordAmbiguous => (FailedPrecondition, "too many records match; use a narrower set of keys"),
        Reason::ProviderNotConnected => (Unavailable, "the provider's system is not connected yet"),
        Reason::ProviderUnavailable => (Unavailable, "the provider's system can't be reached; try again later"),
        Reason::ProviderTimeout => (DeadlineExceeded, "the provider's system did not answer in time"),
        Reason::ProviderRefused => (Unavailable, "the provider's system refused the gateway"),
        Reason::ProviderAnswerInvalid => (Unavailable, "the provider's answer was not valid and was thrown away"),

        Reason::CallerLimited => (ResourceExhausted, "too many calls; wait as RetryInfo says"),
        Reason::SubjectLimited => (ResourceExhausted, "too many lookups of this subject; wait as RetryInfo says"),
        Reason::AttemptsLimited => {
            (ResourceExhausted, "too many claims about this subject were wrong; wait as RetryInfo says")
        }
        Reason::ProviderLimited => (ResourceExhausted, "the provider's system is busy; wait as RetryInfo says"),
        Reason::GatewayLimited => (ResourceExhausted, "the gateway is busy; wait as RetryInfo says"),

        Reason::AuditUnavailable => (Unavailable, "no access record could be written, so nothing is released"),
        Reason::DeadlineExceeded => (DeadlineExceeded, "the call's deadline passed"),
        Reason::Cancelled => (Cancelled, "the call was cancelled"),
        Reason::Internal => (Internal, "the gateway failed; report the request id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_those_of_the_api() {
        let numbers: Vec<i32> = Reason::ALL.iter().map(|reason| reason.number()).collect();
        for number in 1..=127 {
            let in_api = ErrorReason::try_from(number).is_ok();
            assert_eq!(in_api, numbers.contains(&number), "{number}");
        }
        for reason in Reason::ALL {
            // `TokenMissing` and `TOKEN_MISSING` are the same words.
            let words = format!("{reason:?}").to_uppercase();
            assert_eq!(name(reason).replace('_', ""), words);
        }
    }

    #[test]
    fn a_refusal_carries_its_reason_and_when_to_retry() {
        let refused = Refused {
            retry_after: Some(std::time::Duration::from_secs(2)),
            ..Refused::new(Reason::ProviderLimited).with("provider", "WJ")
        };
        let status = of(&Refusal { refused: refused.clone(), recorded: None }, RequestId::generate());
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("PROVIDER_LIMITED", DOMAIN));
        assert_eq!(info.metadata["provider"], "WJ");
        assert_eq!(details.retry_info().unwrap().retry_delay, refused.retry_after);
        assert_eq!(message_of(&refused).details.len(), 2);
    }
}
