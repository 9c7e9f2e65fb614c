use crate::server::Server;
use bytes::Bytes;
use relay_core::subject::Lane;
#[tokio::test]
async fn tmp() -> anyhow::Result<()> {
    for round in 0..6 {
        let mut server = Server::start().await?;
        let bus = server.bus().await?;
        for n in 0..200u8 {
            bus.publish_jobs(Lane::Fresh, 0, Bytes::copy_from_slice(&[n])).await?;
        }
        if round % 2 == 1 { tokio::time::sleep(std::time::Duration::from_millis(300)).await; }
        let mut source = bus.jobs(&[Lane::Fresh]);
        for _ in 0..100 { let j = source.next(&Default::default()).await.unwrap(); j.ack.ack().await; }
        println!("before {:?}", bus.jobs_lag(Lane::Fresh).await?);
        server.kill()?;
        server.start_again().await?;
        let c = server.raw().await?;
        let a = c.request("$JS.API.STREAM.INFO.JOBS", "".into()).await?;
        let v: serde_json::Value = serde_json::from_slice(&a.payload)?;
        let a = c.request("$JS.API.CONSUMER.INFO.JOBS.deliverer-fresh", "".into()).await?;
        let w: serde_json::Value = serde_json::from_slice(&a.payload)?;
        println!("{round} {} {} {} {} {}", v["state"]["messages"], v["state"]["last_seq"], w["num_pending"], w["num_ack_pending"], w["delivered"]);
        let mut n = 0;
        while let Ok(Some(j)) = tokio::time::timeout(std::time::Duration::from_secs(2), source.next(&Default::default())).await { j.ack.ack().await; n += 1; }
        println!("got {n}");
    }
    Ok(())
}
