//! What the gateway refuses, and the reason it gives.

use std::io::Write;
use std::time::Duration;

use super::account::Ledger;
use super::cast;
use super::scene::{Scene, matter};
use crate::cli::Failure;
use crate::cli::answer::Refusal;
use crate::cli::case::Case;
use crate::cli::client::Client;
use crate::cli::table::{Cell, Look, Table, Tone};
use crate::pb::gateway as pb;
use crate::pb::gateway::lookup_service_client::LookupServiceClient;

/// One attempt: who tries what, whose token it shows, and the reason that is due.
struct Attempt<'a> {
    what: &'a str,
    consumer: &'a str,
    /// The matter that the request names; the token is for a birth.
    matter: &'a str,
    field: &'a str,
    /// What is changed in the case that the request and its token name.
    change: fn(&mut Case, &Scene),
    /// Who shows the platform's token.
    by: &'a Client,
    due: &'a str,
}

/// Tries what must be refused; fails if anything is not, or for another reason.
pub(super) async fn show(scene: &Scene, ledger: &mut Ledger, out: &mut dyn Write, look: Look) -> Result<(), Failure> {
    let (platform, household) = (&scene.platform, &scene.household);
    let attempts = [
        Attempt {
            what: "a field that was not granted: JK asks for the father's number",
            consumer: "JK",
            matter: "newborn_birth",
            field: "father_id_no",
            change: |_, _| {},
            by: platform,
            due: "NOT_GRANTED",
        },
        Attempt {
            what: "a matter that is not its own: SJ asks about a birth",
            consumer: "SJ",
            matter: "newborn_birth",
            field: "infant_name",
            change: |_, _| {},
            by: platform,
            due: "NOT_GRANTED",
        },
        Attempt {
            what: "another matter than the token's",
            consumer: "GA",
            matter: "school_enrolment",
            field: "infant_name",
            change: |_, _| {},
            by: platform,
            due: "PURPOSE_MISMATCH",
        },
        Attempt {
            what: "a token that is bound to another certificate",
            consumer: "GA",
            matter: "newborn_birth",
            field: "infant_name",
            change: |_, _| {},
            by: household,
            due: "TOKEN_NOT_BOUND",
        },
        Attempt {
            what: "a grant that has expired: RS asks under last year's",
            consumer: "RS",
            matter: "newborn_birth",
            field: "infant_name",
            change: |_, _| {},
            by: platform,
            due: "GRANT_EXPIRED",
        },
        Attempt {
            what: "a field that nobody may have: the birth weight",
            consumer: "GA",
            matter: "newborn_birth",
            field: "birth_weight_g",
            change: |_, _| {},
            by: platform,
            due: "NEVER_SHARED",
        },
        Attempt {
            what: "somebody who is not in the case: the neighbours' child",
            consumer: "GA",
            matter: "newborn_birth",
            field: "infant_name",
            change: |case, scene| {
                let neighbours = scene.population.newborn_twins();
                let twin = neighbours.and_then(|family| Some((family, family.children.first()?)));
                if let Some((family, child)) = twin {
                    case.subjects = vec![cast::born("child", &child.person), cast::person("mother", &family.mother)];
                }
            },
            by: platform,
            due: "SUBJECT_NOT_IN_CASE",
        },
        Attempt {
            what: "a case that nobody has opened",
            consumer: "GA",
            matter: "newborn_birth",
            field: "infant_name",
            change: |case, _| "HS-DEMO-999999".clone_into(&mut case.case_id),
            by: platform,
            due: "CASE_NOT_OPEN",
        },
    ];
    let mut table = Table::new(&["attempt", "answer", "reason"]).limit(0, 64);
    for attempt in attempts {
        let refusal = attempt.make(scene, ledger).await?;
        let as_due = refusal.as_ref().is_some_and(|refusal| refusal.reason == attempt.due);
        let (code, reason) = match refusal {
            Some(refusal) => (format!("{:?}", refusal.code), refusal.reason),
            None => ("ANSWERED".to_owned(), String::new()),
        };
        table.row([attempt.what.into(), code.into(), Cell::toned(reason, if as_due { Tone::Good } else { Tone::Bad })]);
        if !as_due {
            ledger.fault(format!("not refused as due ({}): {}", attempt.due, attempt.what));
        }
    }
    table.write(out, look)?;
    Ok(())
}

impl Attempt<'_> {
    async fn make(&self, scene: &Scene, ledger: &mut Ledger) -> Result<Option<Refusal>, Failure> {
        let mut case = cast::case(&scene.population, matter(&scene.catalog, "newborn_birth")?)?;
        (self.change)(&mut case, scene);
        let token = scene.platform.token(&case.token_for(&self.consumer.parse()?)?)?;
        let message = pb::LookupRequest {
            matter: self.matter.to_owned(),
            case_id: case.case_id.clone(),
            certificate_type: "birth_medical_certificate".to_owned(),
            subject_role: "child".to_owned(),
            subjects: case.subjects(),
            read_mask: Some(prost_types::FieldMask { paths: vec![self.field.to_owned()] }),
        };
        let request = self.by.request(message, &token, Duration::from_secs(5))?;
        match LookupServiceClient::new(self.by.channel.clone()).lookup(request).await {
            Ok(answer) => {
                ledger.answer(answer.get_ref());
                Ok(None)
            }
            Err(status) => {
                ledger.refusal(&status);
                Ok(Some(Refusal::of(&status)))
            }
        }
    }
}
