/* A stand-in for what iphlpapi.dll has about interfaces: it writes down what it is told, and refuses what
 * Windows refuses.
 *
 * Built by mingw it has the structures and prototypes of Windows' own headers, so that fields in the wrong
 * place show; elsewhere they are written down here, once more and by their own names, for a copy of what the
 * code under test has would have its mistakes. Functions with Fake in their name are for tests. */

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <uchar.h>

#ifdef _WIN32
#include <winsock2.h>
#include <ws2ipdef.h>
#include <windows.h>
#include <iphlpapi.h>
#include <netioapi.h>
#define CALL __stdcall
#define STATUS NETIO_STATUS NETIOAPI_API_
#define NOTHING VOID NETIOAPI_API_
#else
#define CALL
#define STATUS uint32_t
#define NOTHING void
#define CONST const
enum { AF_INET = 2, AF_INET6 = 23 };
enum { NO_ERROR = 0, ERROR_INVALID_PARAMETER = 87, ERROR_INVALID_NAME = 123, ERROR_NOT_FOUND = 1168 };
enum { ERROR_OBJECT_ALREADY_EXISTS = 5010 };
typedef char16_t WCHAR;
typedef struct { uint32_t Data1; uint16_t Data2, Data3; uint8_t Data4[8]; } GUID;
typedef struct { uint64_t Value; } NET_LUID;
typedef union {
    struct { uint16_t sin_family, sin_port; uint32_t sin_addr, sin_zero[2]; } Ipv4;
    struct { uint16_t sin6_family, sin6_port; uint32_t sin6_flowinfo; uint8_t sin6_addr[16]; uint32_t sin6_scope_id; } Ipv6;
    uint16_t si_family;
} SOCKADDR_INET;
typedef struct { SOCKADDR_INET Prefix; uint8_t PrefixLength; } IP_ADDRESS_PREFIX;
typedef struct {
    SOCKADDR_INET Address;
    NET_LUID InterfaceLuid;
    uint32_t InterfaceIndex;
    int32_t PrefixOrigin, SuffixOrigin;
    uint32_t ValidLifetime, PreferredLifetime;
    uint8_t OnLinkPrefixLength, SkipAsSource;
    int32_t DadState;
    uint32_t ScopeId;
    int64_t CreationTimeStamp;
} MIB_UNICASTIPADDRESS_ROW;
typedef struct {
    uint16_t Family;
    NET_LUID InterfaceLuid;
    uint32_t InterfaceIndex, MaxReassemblySize;
    uint64_t InterfaceIdentifier;
    uint32_t MinRouterAdvertisementInterval, MaxRouterAdvertisementInterval;
    uint8_t AdvertisingEnabled, ForwardingEnabled, WeakHostSend, WeakHostReceive, UseAutomaticMetric;
    uint8_t UseNeighborUnreachabilityDetection, ManagedAddressConfigurationSupported;
    uint8_t OtherStatefulConfigurationSupported, AdvertiseDefaultRoute;
    int32_t RouterDiscoveryBehavior;
    uint32_t DadTransmits, BaseReachableTime, RetransmitTime, PathMtuDiscoveryTimeout;
    int32_t LinkLocalAddressBehavior;
    uint32_t LinkLocalAddressTimeout, ZoneIndices[16], SitePrefixLength, Metric, NlMtu;
    uint8_t Connected, SupportsWakeUpPatterns, SupportsNeighborDiscovery, SupportsRouterDiscovery;
    uint32_t ReachableTime;
    uint8_t TransmitOffload, ReceiveOffload, DisableDefaultRoutes;
} MIB_IPINTERFACE_ROW;
typedef struct {
    NET_LUID InterfaceLuid;
    uint32_t InterfaceIndex;
    IP_ADDRESS_PREFIX DestinationPrefix;
    SOCKADDR_INET NextHop;
    uint8_t SitePrefixLength;
    uint32_t ValidLifetime, PreferredLifetime, Metric;
    int32_t Protocol;
    uint8_t Loopback, AutoconfigureAddress, Publish, Immortal;
    uint32_t Age;
    int32_t Origin;
} MIB_IPFORWARD_ROW2;
typedef MIB_UNICASTIPADDRESS_ROW *PMIB_UNICASTIPADDRESS_ROW;
typedef MIB_IPINTERFACE_ROW *PMIB_IPINTERFACE_ROW;
typedef MIB_IPFORWARD_ROW2 *PMIB_IPFORWARD_ROW2;
#endif

typedef struct { /* mingw's headers of 2022 do not have it */
    uint32_t Version;
    uint64_t Flags;
    const WCHAR *Domain, *NameServer, *SearchList;
    uint32_t RegistrationEnabled, RegisterAdapterName, EnableLLMNR, QueryAdapterName;
    const WCHAR *ProfileNameServer;
} dns_settings;

enum { LINES = 16384, UNKNOWN_LENGTH = 255 };

static char lines[LINES];
static char16_t alias[257];
static uint64_t alias_luid;
static uint8_t alias_guid[16];
static uint64_t known;           /* the interface that is there */
static uint32_t absent_times, absent_family, refusal;

static void note(const char *format, ...) {
    size_t used = strlen(lines);
    va_list values;
    va_start(values, format);
    vsnprintf(lines + used, LINES - used, format, values);
    va_end(values);
}

/* Whether the text is there already; a line that is told twice is told once. */
static int is_noted(const char *line) { return strstr(lines, line) != NULL; }

static void describe(char *out, size_t room, const SOCKADDR_INET *address) {
    const uint8_t *bytes = (const uint8_t *)&address->Ipv4.sin_addr;
    size_t size = 4, i, used;
    if (address->si_family == AF_INET6) {
        bytes = (const uint8_t *)&address->Ipv6.sin6_addr;
        size = 16;
    } else if (address->si_family != AF_INET) {
        snprintf(out, room, "family%u", address->si_family);
        return;
    }
    for (i = used = 0; i < size; i++)
        used += (size_t)snprintf(out + used, room - used, "%02x", bytes[i]);
}

static unsigned bits_of(const SOCKADDR_INET *address) { return address->si_family == AF_INET ? 32 : 128; }

static uint32_t add(uint64_t luid, unsigned family, const char *line) {
    if (refusal)
        return refusal;
    if (luid != known || family == absent_family)
        return ERROR_NOT_FOUND;
    if (is_noted(line))
        return ERROR_OBJECT_ALREADY_EXISTS;
    note("%s", line);
    return NO_ERROR;
}

#ifdef _WIN32
STATUS ConvertInterfaceAliasToLuid(CONST WCHAR *name, PNET_LUID luid) {
#else
STATUS ConvertInterfaceAliasToLuid(CONST WCHAR *name, NET_LUID *luid) {
#endif
    size_t i;
    for (i = 0; alias[i] && (char16_t)name[i] == alias[i]; i++) {}
    if (!alias_luid || (char16_t)name[i] != alias[i])
        return ERROR_INVALID_NAME;
    luid->Value = alias_luid;
    return NO_ERROR;
}

STATUS ConvertInterfaceLuidToGuid(CONST NET_LUID *luid, GUID *guid) {
    if (luid->Value == alias_luid)
        memcpy(guid, alias_guid, 16);
    else if (luid->Value == known)
        memset(guid, 0x11, 16);
    else
        return ERROR_INVALID_PARAMETER;
    return NO_ERROR;
}

NOTHING InitializeUnicastIpAddressEntry(PMIB_UNICASTIPADDRESS_ROW row) {
    memset(row, 0, sizeof *row);
    row->OnLinkPrefixLength = UNKNOWN_LENGTH;
    row->ValidLifetime = row->PreferredLifetime = 0xFFFFFFFF;
}

STATUS CreateUnicastIpAddressEntry(CONST MIB_UNICASTIPADDRESS_ROW *row) {
    char address[40], line[160];
    if (row->OnLinkPrefixLength > bits_of(&row->Address))
        return ERROR_INVALID_PARAMETER;
    describe(address, sizeof address, &row->Address);
    snprintf(line, sizeof line, "address %s/%u valid %x preferred %x dad %d\n", address, row->OnLinkPrefixLength,
             (unsigned)row->ValidLifetime, (unsigned)row->PreferredLifetime, (int)row->DadState);
    return add(row->InterfaceLuid.Value, row->Address.si_family, line);
}

NOTHING InitializeIpInterfaceEntry(PMIB_IPINTERFACE_ROW row) {
    memset(row, 0xFF, sizeof *row); /* what is not read first is not there */
    row->InterfaceLuid.Value = 0;
}

STATUS GetIpInterfaceEntry(PMIB_IPINTERFACE_ROW row) {
    uint16_t family = (uint16_t)row->Family;
    uint64_t luid = row->InterfaceLuid.Value;
    if (absent_times) {
        absent_times--;
        return ERROR_NOT_FOUND;
    }
    if (luid != known || family == absent_family)
        return ERROR_NOT_FOUND;
    memset(row, 0, sizeof *row);
    row->Family = family;
    row->InterfaceLuid.Value = luid;
    row->SitePrefixLength = 64;
    row->UseAutomaticMetric = 1;
    row->RouterDiscoveryBehavior = 2;
    row->DadTransmits = 3;
    row->NlMtu = 65535;
    row->BaseReachableTime = 30000;
    return NO_ERROR;
}

STATUS SetIpInterfaceEntry(PMIB_IPINTERFACE_ROW row) {
    char line[160];
    if (row->Family == AF_INET ? row->SitePrefixLength != 0 : row->NlMtu < 1280)
        return ERROR_INVALID_PARAMETER;
    if (row->BaseReachableTime != 30000) /* what was read has to come back */
        return ERROR_INVALID_PARAMETER;
    snprintf(line, sizeof line, "interface %u mtu %u automatic %u metric %u discovery %d dad %u managed %u\n",
             (unsigned)row->Family, (unsigned)row->NlMtu, row->UseAutomaticMetric, (unsigned)row->Metric,
             (int)row->RouterDiscoveryBehavior, (unsigned)row->DadTransmits,
             row->ManagedAddressConfigurationSupported | row->OtherStatefulConfigurationSupported);
    uint32_t code = add(row->InterfaceLuid.Value, row->Family, line);
    return code == ERROR_OBJECT_ALREADY_EXISTS ? NO_ERROR : code;
}

NOTHING InitializeIpForwardEntry(PMIB_IPFORWARD_ROW2 row) {
    memset(row, 0, sizeof *row);
    row->Metric = 0xFFFFFFFF;
    row->DestinationPrefix.PrefixLength = UNKNOWN_LENGTH;
    row->ValidLifetime = row->PreferredLifetime = 0xFFFFFFFF;
}

STATUS CreateIpForwardEntry2(CONST MIB_IPFORWARD_ROW2 *row) {
    char network[40], hop[40], line[160];
    if (row->DestinationPrefix.PrefixLength > bits_of(&row->DestinationPrefix.Prefix)
            || row->NextHop.si_family != row->DestinationPrefix.Prefix.si_family)
        return ERROR_INVALID_PARAMETER;
    describe(network, sizeof network, &row->DestinationPrefix.Prefix);
    describe(hop, sizeof hop, &row->NextHop);
    snprintf(line, sizeof line, "route %s/%u by %s metric %u\n", network, row->DestinationPrefix.PrefixLength, hop,
             (unsigned)row->Metric);
    return add(row->InterfaceLuid.Value, row->NextHop.si_family, line);
}

uint32_t CALL SetInterfaceDnsSettings(GUID guid, const dns_settings *settings) {
    char servers[200];
    size_t i;
    GUID expected;
    memset(&expected, 0x11, sizeof expected);
    if (memcmp(&guid, &expected, sizeof guid) || settings->Version != 1)
        return ERROR_INVALID_PARAMETER;
    for (i = 0; settings->NameServer[i] && i + 1 < sizeof servers; i++)
        servers[i] = (char)settings->NameServer[i];
    servers[i] = 0;
    note("resolvers %s flags %u\n", servers, (unsigned)settings->Flags);
    return NO_ERROR;
}

/* The interface `luid` comes, without notes; a family may be missing, and so many looks find nothing yet. */
void CALL FakeInterface(uint64_t luid, uint32_t times, uint32_t family, uint32_t code) {
    lines[0] = 0;
    known = luid;
    absent_times = times;
    absent_family = family;
    refusal = code;
}

/* Another interface has this name, and this identity; 0: none has. */
void CALL FakeAlias(const char16_t *name, uint64_t luid, const uint8_t *guid) {
    size_t i;
    for (i = 0; i < 256 && name[i]; i++)
        alias[i] = name[i];
    alias[i] = 0;
    alias_luid = luid;
    memcpy(alias_guid, guid, 16);
}

const char *CALL FakeNotes(void) { return lines; }
