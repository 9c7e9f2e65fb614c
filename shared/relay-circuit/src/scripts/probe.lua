-- Grants the one probe of an open circuit whose time is over. KEYS: hash, probe set. ARGV: endpoint, channel,
-- lease_ms, keep_ms. Returns granted (0 no, 1 yes, 2 in the place of a lost one), word, milliseconds.

local hash, probe_set = KEYS[1], KEYS[2]
local endpoint, channel, lease_ms, keep_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()
local word, ms = state_of(hash, now)
if word ~= 'open' or ms > 0 then
  return { 0, word, ms }
end
local granted = 1 + redis.call('HEXISTS', hash, 'probe_until')
redis.call('HSET', hash, 'probe_until', now + lease_ms)
redis.call('PEXPIRE', hash, lease_ms + keep_ms)
redis.call('ZADD', probe_set, now + lease_ms, endpoint)
announce(channel, endpoint, 'probing', lease_ms)
return { granted, 'probing', lease_ms }
