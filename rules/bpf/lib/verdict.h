/* What a packet is counted under. The same numbers as shim/core/verdict.py; rules/README.md explains them.
 * A number is never reused. Refusals start at 16, away from TC_ACT_*; a judge returns them negated. */
#pragma once

#define COUNTERS 64

#define DELIVERED 1
#define REPLIED 2
#define OPENED 3
#define ARP_ANSWERED 4
#define ND_ANSWERED 5
#define ECHO_ANSWERED 6

#define DISABLED_RESET 16
#define DISABLED_DROP 17
#define NO_IDENTITY 18
#define NOT_ENROLLED 19
#define RATE_LIMITED 20
#define FLOW_LIMIT 21
#define FLOW_CLASH 22
#define NO_FLOW 23
#define SPOOFED_SOURCE 24
#define SPOOFED_ARP 25
#define SPOOFED_ND 26
#define WRONG_PORT 27
#define WRONG_PROTOCOL 28
#define FRAGMENT 29
#define IP_OPTIONS 30
#define EXTENSION_HEADER 31
#define MALFORMED 32
#define VLAN_DEPTH 33
#define REPLY_FOREIGN 40
#define REPLY_NO_PORT 41
#define REPLY_NO_FLOW 42
#define REPLY_DISABLED 43
#define KERNEL_FAILED 44
