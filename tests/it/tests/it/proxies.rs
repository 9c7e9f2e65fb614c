//! Whose word about a client's address is taken: a trusted proxy's, in the header that it was told to write. Shown by the
//! log, and by whose wrong keys are counted.

use it::process::Process;
use it::{Answer, Api, World};

use crate::servers::sql;

/// The trusted proxy, and somebody else.
const PROXY: &str = "127.0.0.2";
const STRANGER: &str = "127.0.0.3";
/// More than anybody gets wrong before it is told to wait.
const TRIES_MAX: usize = 100;

/// How a header names a client.
type Writes = fn(&str) -> String;

/// An ingest that needs a key, and is called from an address of loopback.
struct Door {
    ingest: Process,
    address: String,
    key: String,
}

impl Door {
    async fn open(w: &World, name: &str, header: &str) -> anyhow::Result<Self> {
        let flags = ["--trusted-proxies", PROXY, "--trusted-proxy-header", header].map(str::to_owned);
        let operator = ("RELAY_API_KEY".to_owned(), "an-operators-key-of-some-length".to_owned());
        // One that nobody has any more: what can't be a key isn't looked up at all.
        let key = w.key("default", "read", &[])?;
        sql(w, "delete from api_keys")?;
        let (ingest, address) = w.service_with(name, "ingest", &flags, &[operator]).await?;
        Ok(Self { ingest, address, key })
    }

    /// A wrong key from `from`, which says so in a header.
    async fn wrong(&self, from: &str, header: (&str, &str)) -> anyhow::Result<Answer> {
        let api = Api::calling_from(&format!("http://{}", self.address), from.parse()?).with_key(&self.key);
        api.request("GET", "/api/v1/stats", &[header], None).await
    }

    /// Wrong keys until no more are looked at.
    async fn until_blocked(&self, from: &str, header: impl Fn(usize) -> (String, String)) -> anyhow::Result<()> {
        for n in 0..TRIES_MAX {
            let (name, value) = header(n);
            let answer = self.wrong(from, (&name, &value)).await?;
            if answer.status == 429 {
                assert!(answer.headers.contains_key("retry-after"));
                return Ok(());
            }
            answer.expect_problem(401, "unauthorized");
        }
        anyhow::bail!("{TRIES_MAX} wrong keys are looked at")
    }

    /// Whether wrong keys of this client were noted, and so how its log shows it.
    fn knows(&self, client: &str) -> bool {
        self.ingest.output().lines().any(|l| l.contains("wrong API key") && l.contains(&format!("client={client} ")))
    }
}

#[tokio::test]
async fn only_a_trusted_proxy_says_who_calls() -> anyhow::Result<()> {
    let w = World::servers().await?;
    let styles: [(&str, &str, Writes); 2] = [
        ("x-forwarded-for", "forwarded", str::to_owned),
        ("forwarded", "x-forwarded-for", |client| format!("for={client};proto=https")),
    ];
    for (header, other, write) in styles {
        let door = Door::open(&w, header, header).await?;
        door.wrong(PROXY, (header, &write("203.0.113.7"))).await?.expect_problem(401, "unauthorized");
        assert!(door.knows("203.0.113.7"), "{}", door.ingest.output());
        // A chain: the last one that is no proxy is the client, whatever stands before.
        let chain = [write("203.0.113.50"), write("203.0.113.8"), write(PROXY)].join(", ");
        door.wrong(PROXY, (header, &chain)).await?.expect_problem(401, "unauthorized");
        assert!(door.knows("203.0.113.8") && !door.knows("203.0.113.50"), "{}", door.ingest.output());
        // The header that it isn't told to write may be the client's own.
        door.wrong(PROXY, (other, "for=203.0.113.51, 203.0.113.51")).await?.expect_problem(401, "unauthorized");
        assert!(door.knows(PROXY) && !door.knows("203.0.113.51"), "{}", door.ingest.output());
        // A stranger's word isn't taken: his wrong keys are his own, whomever he names, and nobody else is blocked.
        door.until_blocked(STRANGER, |n| (header.to_owned(), write(&format!("203.0.113.{}", 100 + n)))).await?;
        assert!(door.knows(STRANGER) && !door.knows("203.0.113.100"), "{}", door.ingest.output());
        door.wrong(PROXY, (header, &write("203.0.113.100"))).await?.expect_problem(401, "unauthorized");
        door.wrong("127.0.0.1", (header, &write(STRANGER))).await?.expect_problem(401, "unauthorized");
        // A client behind the proxy is blocked alone, and can't get out of it by a longer chain.
        door.until_blocked(PROXY, |n| {
            let chain = [write(&format!("203.0.113.{}", 100 + n)), write("203.0.113.9")].join(", ");
            (header.to_owned(), chain)
        })
        .await?;
        door.wrong(PROXY, (header, &write("203.0.113.10"))).await?.expect_problem(401, "unauthorized");
        assert!(!door.knows("203.0.113.101"), "{}", door.ingest.output());
    }
    Ok(())
}
