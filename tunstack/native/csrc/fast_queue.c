/* The queues of the fast path: chains of pages, and the records of what was sent. */
#define _GNU_SOURCE
#include "fastpath.h"

#include <stdlib.h>
#include <string.h>

#define SPARE 256 /* pages and records that are kept when they are freed */

static struct ts_page *new_page(struct ts_fast *fast)
{
    struct ts_page *page = fast->pages;

    if (page) {
        fast->pages = page->next;
        fast->spare_pages--;
    } else {
        page = malloc(sizeof *page);
    }
    if (page)
        page->next = NULL;
    return page;
}

static void free_page(struct ts_fast *fast, struct ts_page *page)
{
    if (fast->spare_pages >= SPARE) {
        free(page);
        return;
    }
    page->next = fast->pages;
    fast->pages = page;
    fast->spare_pages++;
}

/*
 * Writable views for up to `limit` bytes at the tail of an out queue. Fewer, even none, when the budget is
 * exhausted; -1 without memory. ts_chain_commit must follow. At most TS_FAST_IOV views.
 */
int ts_chain_reserve(struct ts_fast *fast, struct ts_chain *chain, uint32_t limit, struct iovec *views,
                     int *count)
{
    uint32_t used = (chain->head + chain->length) % TS_FAST_PAGE;

    *count = 0;
    if (limit && used && chain->length) {
        uint32_t room = TS_FAST_PAGE - used < limit ? TS_FAST_PAGE - used : limit;

        views[*count].iov_base = chain->last->data + used;
        views[(*count)++].iov_len = room;
        limit -= room;
    }
    while (limit && *count < TS_FAST_IOV && fast->send_free >= TS_FAST_PAGE) {
        struct ts_page *page = new_page(fast);
        uint32_t room = limit < TS_FAST_PAGE ? limit : TS_FAST_PAGE;

        if (!page)
            return -1;
        fast->send_free -= TS_FAST_PAGE;
        if (chain->last)
            chain->last->next = page;
        else
            chain->first = page;
        chain->last = page;
        views[*count].iov_base = page->data;
        views[(*count)++].iov_len = room;
        limit -= room;
    }
    return 0;
}

/* The first `count` bytes that ts_chain_reserve gave are filled; pages without any go back. */
void ts_chain_commit(struct ts_fast *fast, struct ts_chain *chain, uint32_t count)
{
    uint32_t pages;
    struct ts_page *page, *extra;

    chain->length += count;
    pages = chain->length ? (chain->head + chain->length + TS_FAST_PAGE - 1) / TS_FAST_PAGE : 0;
    if (!pages) {
        extra = chain->first;
        chain->first = chain->last = NULL;
        chain->head = 0;
    } else {
        page = chain->first;
        while (--pages)
            page = page->next;
        extra = page->next;
        page->next = NULL;
        chain->last = page;
    }
    while (extra) {
        page = extra->next;
        free_page(fast, extra);
        fast->send_free += TS_FAST_PAGE;
        extra = page;
    }
}

/*
 * Copy `length` bytes to the tail. `budget` is what pays for the pages; that it may become negative is for the
 * caller to bound. -1 without memory, and nothing is copied.
 */
int ts_chain_append(struct ts_fast *fast, struct ts_chain *chain, int64_t *budget, const uint8_t *data,
                    uint32_t length)
{
    uint32_t used = (chain->head + chain->length) % TS_FAST_PAGE;
    uint32_t room = chain->length && used ? TS_FAST_PAGE - used : 0;
    uint32_t needed = length > room ? (length - room + TS_FAST_PAGE - 1) / TS_FAST_PAGE : 0, i;
    struct ts_page *fresh = NULL, *page, **next = &fresh;

    for (i = 0; i < needed; i++) {
        page = new_page(fast);
        if (!page) {
            while (fresh) {
                page = fresh->next;
                free_page(fast, fresh);
                fresh = page;
            }
            return -1;
        }
        *next = page;
        next = &page->next;
    }
    *budget -= (int64_t)needed * TS_FAST_PAGE;
    chain->length += length;
    if (room) {
        uint32_t size = room < length ? room : length;

        memcpy(chain->last->data + used, data, size);
        data += size;
        length -= size;
    }
    while (fresh) {
        uint32_t size = length < TS_FAST_PAGE ? length : TS_FAST_PAGE;

        memcpy(fresh->data, data, size);
        data += size;
        length -= size;
        if (chain->last)
            chain->last->next = fresh;
        else
            chain->first = fresh;
        chain->last = fresh;
        fresh = fresh->next;
    }
    return 0;
}

/* Views of `count` bytes from `offset` on, which must be there; returns how many, at most `most`. */
int ts_chain_views(const struct ts_chain *chain, uint32_t offset, uint32_t count, struct iovec *views,
                   int most)
{
    const struct ts_page *page = chain->first;
    uint32_t start = chain->head + offset;
    int views_made = 0;

    if (offset > chain->length || count > chain->length - offset)
        return 0;
    while (start >= TS_FAST_PAGE) {
        page = page->next;
        start -= TS_FAST_PAGE;
    }
    while (count && views_made < most) {
        uint32_t size = TS_FAST_PAGE - start < count ? TS_FAST_PAGE - start : count;

        views[views_made].iov_base = (uint8_t *)page->data + start;
        views[views_made++].iov_len = size;
        count -= size;
        start = 0;
        page = page->next;
    }
    return views_made;
}

/* Forget the first `count` bytes. */
void ts_chain_release(struct ts_fast *fast, struct ts_chain *chain, int64_t *budget, uint32_t count)
{
    struct ts_page *page;

    if (count > chain->length)
        count = chain->length;
    chain->length -= count;
    chain->head += count;
    while (chain->first && (chain->head >= TS_FAST_PAGE || !chain->length)) {
        page = chain->first;
        chain->first = page->next;
        free_page(fast, page);
        *budget += TS_FAST_PAGE;
        chain->head = chain->head >= TS_FAST_PAGE ? chain->head - TS_FAST_PAGE : 0;
    }
    if (!chain->first) {
        chain->last = NULL;
        chain->head = 0;
    }
}

int ts_flow_fill(struct ts_fast *fast, struct ts_flow *flow, int in, const uint8_t *data, uint32_t length)
{
    return ts_chain_append(fast, in ? &flow->in : &flow->out, in ? &fast->keep_free : &fast->send_free, data,
                           length);
}

uint32_t ts_flow_readable(const struct ts_flow *flow)
{
    return flow->in.length + flow->borrowed_bytes;
}

int ts_flow_copy(const struct ts_flow *flow, int in, uint8_t *data, uint32_t length)
{
    const struct ts_chain *chain = in ? &flow->in : &flow->out;
    const struct ts_page *page = chain->first;
    uint32_t left = chain->length, start = chain->head, i;

    if (length != (in ? ts_flow_readable(flow) : left))
        return -1;
    while (left) {
        uint32_t size = TS_FAST_PAGE - start < left ? TS_FAST_PAGE - start : left;

        memcpy(data, page->data + start, size);
        data += size;
        left -= size;
        start = 0;
        page = page->next;
    }
    for (i = 0; in && i < flow->borrowed_count; i++) {
        memcpy(data, flow->borrowed[i], flow->borrowed_length[i]);
        data += flow->borrowed_length[i];
    }
    return 0;
}

static struct ts_sent *new_record(struct ts_fast *fast)
{
    struct ts_sent *record = fast->records;

    if (record) {
        fast->records = record->next;
        fast->spare_records--;
    } else {
        record = malloc(sizeof *record);
    }
    if (record)
        record->next = NULL;
    return record;
}

int ts_flow_sent(struct ts_fast *fast, struct ts_flow *flow, uint32_t seq, uint32_t end, double at)
{
    struct ts_sent *record = new_record(fast);

    if (!record)
        return -1;
    record->at = at;
    record->seq = seq;
    record->end = end;
    if (flow->sent_last)
        flow->sent_last->next = record;
    else
        flow->sent_first = record;
    flow->sent_last = record;
    flow->sent_count++;
    return 0;
}

/*
 * The oldest record is acknowledged up to `ack`, which lies within it. What is left of a segment that `ack` cuts
 * is a record of its own; -1 without memory for that, and it stays with the segments behind it.
 */
int ts_flow_cut_sent(struct ts_fast *fast, struct ts_flow *flow, uint32_t ack)
{
    struct ts_sent *record = flow->sent_first, *rest;
    uint32_t gone = ack - record->seq, beyond = gone % flow->mss, boundary = gone - beyond + flow->mss;

    if (beyond && boundary < record->end - record->seq) {
        rest = new_record(fast);
        if (!rest) {
            record->seq = ack;
            return -1;
        }
        rest->at = record->at;
        rest->seq = record->seq + boundary;
        rest->end = record->end;
        rest->next = record->next;
        record->next = rest;
        record->end = rest->seq;
        if (flow->sent_last == record)
            flow->sent_last = rest;
        flow->sent_count++;
    }
    record->seq = ack;
    return 0;
}

/* The oldest record is done with. */
void ts_flow_drop_sent(struct ts_fast *fast, struct ts_flow *flow)
{
    struct ts_sent *record = flow->sent_first;

    flow->sent_first = record->next;
    if (!flow->sent_first)
        flow->sent_last = NULL;
    flow->sent_count--;
    if (fast->spare_records >= 4 * SPARE) {
        free(record);
        return;
    }
    record->next = fast->records;
    fast->records = record;
    fast->spare_records++;
}

void ts_flow_clear(struct ts_fast *fast, struct ts_flow *flow)
{
    while (flow->sent_first)
        ts_flow_drop_sent(fast, flow);
    ts_chain_release(fast, &flow->out, &fast->send_free, flow->out.length);
    ts_chain_release(fast, &flow->in, &fast->keep_free, flow->in.length);
    flow->borrowed_count = flow->borrowed_bytes = 0;
}

void ts_flow_free(struct ts_fast *fast, struct ts_flow *flow)
{
    ts_flow_clear(fast, flow);
    free(flow);
}
