/* A stand-in for wintun.dll: its 14 functions, rings and events, without a driver and without a network.
 *
 * Built by gcc as a shared object (events are eventfds, the last error is errno) and by mingw as a DLL. The
 * rings have Wintun's arithmetic: each record is a size in 4 bytes and the packet, aligned to 4; one slot stays
 * free; space comes back in the order of the records, and what is sent becomes visible in the order in which it
 * was allocated. What must not be done - use after the end, a second release - ends the process with a word.
 *
 * Functions with Fake in their name are for tests: the driver's side. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uchar.h>

#ifdef _WIN32
#include <windows.h>
#define EXPORT __declspec(dllexport)
#define CALL __stdcall
typedef CRITICAL_SECTION lock_t;
#define lock_init InitializeCriticalSection
#define lock_take EnterCriticalSection
#define lock_give LeaveCriticalSection
typedef HANDLE event_t;
static event_t event_new(void) { return CreateEventW(NULL, FALSE, FALSE, NULL); }
static void event_set(event_t event) { SetEvent(event); }
static void event_close(event_t event) { CloseHandle(event); }
static void set_error(uint32_t code) { SetLastError(code); }
#else
#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>
#define EXPORT __attribute__((visibility("default")))
#define CALL
typedef pthread_mutex_t lock_t;
#define lock_init(lock) pthread_mutex_init(lock, NULL)
#define lock_take pthread_mutex_lock
#define lock_give pthread_mutex_unlock
typedef void *event_t;
static event_t event_new(void) { return (void *)(intptr_t)eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
static void event_set(event_t event) { eventfd_write((int)(intptr_t)event, 1); }
static void event_close(event_t event) { close((int)(intptr_t)event); }
static void set_error(uint32_t code) { errno = (int)code; }
#endif

enum {
    ERROR_NONE = 0, NOT_THERE = 2, DENIED = 5, BROKEN = 13, END_OF_FILE = 38, BAD_PARAMETER = 87, FULL = 111,
    EXISTS = 183, NO_MORE = 259, NOT_FOUND = 1168, IN_USE = 1247,
};
enum { NAME = 128, LEAST = 0x20000, MOST = 0x4000000, LARGEST = 0xFFFF, OPEN = 0x4f50454e, ENDED = 0x454e4445 };
#define RELEASED 0x80000000u
#define DEAD 0xFFFFFFFFu

struct ring {
    uint32_t head, tail;        /* as the other side sees them */
    uint32_t cursor, released;  /* the application's: where it is, and up to where all is done */
    uint32_t pending;           /* records between the two */
    uint8_t *data;
};

struct adapter;

struct session {
    uint32_t state, capacity;
    struct adapter *adapter;
    struct ring in, out; /* to the application, and from it */
    event_t event;
    lock_t in_lock, out_lock;
};

struct adapter {
    struct adapter *next;
    char16_t name[NAME];
    uint8_t guid[16];
    uint64_t luid;
    struct session *session;
    int is_opened; /* a handle of an adapter that somebody else has made */
};

typedef void(CALL *logger_t)(int32_t, uint64_t, const char16_t *);

static struct adapter *adapters;
static logger_t logger;
static uint32_t failures, failure_code; /* of CreateAdapter */
static uint64_t luids = 1;
static struct { uint64_t discarded_in, discarded_out, strange, sessions, adapters; } counters;

static _Noreturn void die(const char *words)
{
    fprintf(stderr, "fakewintun: %s\n", words);
    fflush(stderr);
    abort();
}

static uint32_t aligned(uint32_t size) { return (size + 4 + 3) & ~3u; }

static uint32_t get_size(const struct ring *ring, uint32_t at)
{
    uint32_t size;
    memcpy(&size, ring->data + at, 4);
    return size;
}

static void set_size(struct ring *ring, uint32_t at, uint32_t size) { memcpy(ring->data + at, &size, 4); }

static struct session *checked(void *handle)
{
    struct session *session = handle;
    if (!session || session->state != OPEN)
        die("a session is used that has ended");
    return session;
}

static uint32_t place_of(struct session *session, struct ring *ring, const uint8_t *packet)
{
    if (packet < ring->data + 4 || packet >= ring->data + session->capacity + 4)
        die("a packet is not of this session");
    return (uint32_t)(packet - ring->data) - 4;
}

static int same(const char16_t *a, const char16_t *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static struct adapter *find(const char16_t *name)
{
    for (struct adapter *one = adapters; one; one = one->next)
        if (!one->is_opened && same(one->name, name))
            return one;
    return NULL;
}

EXPORT void *CALL WintunCreateAdapter(const char16_t *name, const char16_t *tunnel_type, const void *guid)
{
    size_t length = 0;
    while (name[length])
        length++;
    if (failures) {
        failures--;
        set_error(failure_code);
        return NULL;
    }
    if (length >= NAME || !tunnel_type) {
        set_error(FULL);
        return NULL;
    }
    for (struct adapter *one = adapters; guid && one; one = one->next)
        if (!memcmp(one->guid, guid, 16)) {
            set_error(EXISTS);
            return NULL;
        }
    struct adapter *made = calloc(1, sizeof *made);
    memcpy(made->name, name, 2 * length);
    if (guid)
        memcpy(made->guid, guid, 16);
    made->luid = (uint64_t)53 << 48 | luids++ << 24;
    made->next = adapters;
    adapters = made;
    counters.adapters++;
    return made;
}

EXPORT void *CALL WintunOpenAdapter(const char16_t *name)
{
    struct adapter *there = find(name);
    if (!there) {
        set_error(NOT_FOUND);
        return NULL;
    }
    struct adapter *made = malloc(sizeof *made);
    *made = *there;
    made->is_opened = 1;
    made->session = NULL;
    made->next = adapters;
    adapters = made;
    counters.adapters++;
    return made;
}

EXPORT void CALL WintunEndSession(void *handle)
{
    struct session *session = checked(handle);
    session->state = ENDED; /* the memory stays, lest a use of it goes unnoticed */
    memset(session->in.data, 0xDD, session->capacity + LARGEST + 1);
    memset(session->out.data, 0xDD, session->capacity + LARGEST + 1);
    free(session->in.data);
    free(session->out.data);
    event_close(session->event);
    session->adapter->session = NULL;
    counters.sessions--;
}

EXPORT void CALL WintunCloseAdapter(void *handle)
{
    struct adapter *adapter = handle;
    if (!adapter)
        return;
    if (adapter->session)
        die("an adapter is closed that has a session");
    struct adapter **place = &adapters;
    while (*place && *place != adapter)
        place = &(*place)->next;
    if (!*place)
        die("an adapter is closed that is not open");
    *place = adapter->next;
    free(adapter);
    counters.adapters--;
}

EXPORT int32_t CALL WintunDeleteDriver(void) { return !adapters; }

EXPORT void CALL WintunGetAdapterLUID(void *handle, uint64_t *luid) { *luid = ((struct adapter *)handle)->luid; }

EXPORT uint32_t CALL WintunGetRunningDriverVersion(void)
{
    if (!adapters)
        set_error(NOT_THERE);
    return adapters ? 14 : 0;
}

EXPORT void CALL WintunSetLogger(logger_t wanted) { logger = wanted; }

EXPORT void *CALL WintunStartSession(void *handle, uint32_t capacity)
{
    struct adapter *adapter = handle;
    if (capacity < LEAST || capacity > MOST || capacity & (capacity - 1)) {
        set_error(BAD_PARAMETER);
        return NULL;
    }
    if (adapter->session) {
        set_error(IN_USE);
        return NULL;
    }
    struct session *session = calloc(1, sizeof *session);
    session->state = OPEN;
    session->capacity = capacity;
    session->adapter = adapter;
    session->in.data = malloc(capacity + LARGEST + 1);
    session->out.data = malloc(capacity + LARGEST + 1);
    memset(session->in.data, 0xAA, capacity + LARGEST + 1);
    memset(session->out.data, 0xAA, capacity + LARGEST + 1);
    session->event = event_new();
    lock_init(&session->in_lock);
    lock_init(&session->out_lock);
    adapter->session = session;
    counters.sessions++;
    return session;
}

EXPORT event_t CALL WintunGetReadWaitEvent(void *handle) { return checked(handle)->event; }

EXPORT uint8_t *CALL WintunReceivePacket(void *handle, uint32_t *size)
{
    struct session *session = checked(handle);
    struct ring *ring = &session->in;
    uint8_t *packet = NULL;
    uint32_t error = ERROR_NONE;
    lock_take(&session->in_lock);
    uint32_t filled = (ring->tail - ring->cursor) & (session->capacity - 1);
    if (ring->tail >= session->capacity)
        error = END_OF_FILE;
    else if (!filled)
        error = NO_MORE;
    else {
        uint32_t length = get_size(ring, ring->cursor);
        if (filled < 4 || length > LARGEST || aligned(length) > filled)
            error = BROKEN;
        else {
            packet = ring->data + ring->cursor + 4;
            *size = length;
            ring->cursor = (ring->cursor + aligned(length)) & (session->capacity - 1);
            ring->pending++;
        }
    }
    lock_give(&session->in_lock);
    if (error)
        set_error(error);
    return packet;
}

EXPORT void CALL WintunReleaseReceivePacket(void *handle, const uint8_t *packet)
{
    struct session *session = checked(handle);
    struct ring *ring = &session->in;
    uint32_t at = place_of(session, ring, packet);
    lock_take(&session->in_lock);
    uint32_t size = get_size(ring, at);
    if (size & RELEASED)
        die("a packet is released twice");
    memset(ring->data + at + 4, 0xEE, size); /* whoever looks at it now finds rubbish */
    set_size(ring, at, size | RELEASED);
    while (ring->pending && get_size(ring, ring->released) & RELEASED) {
        uint32_t done = get_size(ring, ring->released) & ~RELEASED;
        ring->released = (ring->released + aligned(done)) & (session->capacity - 1);
        ring->pending--;
    }
    ring->head = ring->released;
    lock_give(&session->in_lock);
}

EXPORT uint8_t *CALL WintunAllocateSendPacket(void *handle, uint32_t size)
{
    struct session *session = checked(handle);
    struct ring *ring = &session->out;
    uint8_t *packet = NULL;
    uint32_t error = ERROR_NONE;
    lock_take(&session->out_lock);
    if (ring->head >= session->capacity)
        error = END_OF_FILE;
    else if (aligned(size) > ((ring->head - ring->cursor - 4) & (session->capacity - 1)))
        error = FULL;
    else if (size > LARGEST)
        die("a packet is allocated that is larger than any");
    else {
        packet = ring->data + ring->cursor + 4;
        set_size(ring, ring->cursor, size | RELEASED);
        ring->cursor = (ring->cursor + aligned(size)) & (session->capacity - 1);
        ring->pending++;
    }
    lock_give(&session->out_lock);
    if (error)
        set_error(error);
    return packet;
}

EXPORT void CALL WintunSendPacket(void *handle, const uint8_t *packet)
{
    struct session *session = checked(handle);
    struct ring *ring = &session->out;
    uint32_t at = place_of(session, ring, packet);
    lock_take(&session->out_lock);
    if (!(get_size(ring, at) & RELEASED))
        die("a packet is sent twice");
    set_size(ring, at, get_size(ring, at) & ~RELEASED);
    while (ring->pending && !(get_size(ring, ring->released) & RELEASED)) {
        ring->released = (ring->released + aligned(get_size(ring, ring->released))) & (session->capacity - 1);
        ring->pending--;
    }
    if (ring->tail < session->capacity)
        ring->tail = ring->released;
    lock_give(&session->out_lock);
}

/* The driver's side. */

static struct session *session_of(const char16_t *name)
{
    struct adapter *adapter = find(name);
    if (!adapter || !adapter->session)
        die("there is no session of that name");
    return adapter->session;
}

/* A packet for the application; 0: the ring has no room, and it is lost. */
EXPORT int32_t CALL FakeInject(const char16_t *name, const uint8_t *packet, uint32_t size)
{
    struct session *session = session_of(name);
    struct ring *ring = &session->in;
    lock_take(&session->in_lock);
    int fits = ring->tail < session->capacity
        && aligned(size) <= ((ring->head - ring->tail - 4) & (session->capacity - 1));
    if (fits) {
        memcpy(ring->data + ring->tail + 4, packet, size);
        set_size(ring, ring->tail, size);
        ring->tail = (ring->tail + aligned(size)) & (session->capacity - 1);
        event_set(session->event); /* whether or not anybody waits */
    } else
        counters.discarded_out++;
    lock_give(&session->in_lock);
    return fits;
}

static int is_ip(const uint8_t *packet, uint32_t size)
{
    return size >= 20 && (packet[0] >> 4 == 4 || (packet[0] >> 4 == 6 && size >= 40));
}

/* The next packet of the application, up to `room` bytes; -1: there is none. What is no IP is passed over. */
EXPORT int32_t CALL FakeCollect(const char16_t *name, uint8_t *packet, uint32_t room)
{
    struct session *session = session_of(name);
    struct ring *ring = &session->out;
    int32_t found = -1;
    lock_take(&session->out_lock);
    while (found < 0 && ring->head < session->capacity && ring->head != ring->tail) {
        uint32_t size = get_size(ring, ring->head);
        const uint8_t *data = ring->data + ring->head + 4;
        if (is_ip(data, size)) {
            memcpy(packet, data, size < room ? size : room);
            found = (int32_t)size;
        } else
            counters.discarded_in++;
        ring->head = (ring->head + aligned(size)) & (session->capacity - 1);
    }
    lock_give(&session->out_lock);
    return found;
}

/* A wake without a packet. */
EXPORT void CALL FakeWake(const char16_t *name) { event_set(session_of(name)->event); }

/* The adapter goes away. */
EXPORT void CALL FakeTerminate(const char16_t *name)
{
    struct session *session = session_of(name);
    lock_take(&session->in_lock);
    lock_take(&session->out_lock);
    session->in.tail = session->out.head = DEAD;
    lock_give(&session->out_lock);
    lock_give(&session->in_lock);
    event_set(session->event);
}

/* A record that no driver would write comes next. */
EXPORT void CALL FakeCorrupt(const char16_t *name)
{
    struct session *session = session_of(name);
    lock_take(&session->in_lock);
    set_size(&session->in, session->in.tail, LARGEST + 1);
    session->in.tail = (session->in.tail + 8) & (session->capacity - 1);
    lock_give(&session->in_lock);
    event_set(session->event);
}

/* The next `times` attempts to create an adapter fail with `code`. */
EXPORT void CALL FakeFail(uint32_t times, uint32_t code)
{
    failures = times;
    failure_code = code;
}

/* Which: 0, 1: packets that were lost to and from the application; 2, 3: sessions and adapters now. */
EXPORT uint64_t CALL FakeCount(uint32_t which)
{
    const uint64_t all[] = {counters.discarded_out, counters.discarded_in, counters.sessions, counters.adapters};
    return which < 4 ? all[which] : 0;
}

static char16_t line[64];

#ifdef _WIN32
static DWORD WINAPI log_line(void *level)
#else
static void *log_line(void *level)
#endif
{
    if (logger)
        logger((int32_t)(intptr_t)level, 116444736000000000u, line);
    return 0;
}

/* Log from a thread of the DLL's own, and wait for it. */
EXPORT void CALL FakeLog(int32_t level, const char16_t *text)
{
    size_t length = 0;
    for (; text[length] && length < 63; length++)
        line[length] = text[length];
    line[length] = 0;
#ifdef _WIN32
    HANDLE thread = CreateThread(NULL, 0, log_line, (void *)(intptr_t)level, 0, NULL);
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
#else
    pthread_t thread;
    pthread_create(&thread, NULL, log_line, (void *)(intptr_t)level);
    pthread_join(thread, NULL);
#endif
}
