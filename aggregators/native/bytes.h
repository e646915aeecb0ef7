/* Bytes: spans of a record, buffers that grow, and texts in UTF-8. */
#ifndef TIDEMARK_BYTES_H
#define TIDEMARK_BYTES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the core needs a little-endian machine; without the core, the Python columns run"
#endif

/* What a span of JSON is. ESCAPED is a string with a backslash. LONG is a number of more digits than are read here.
   STRANGE is, or has in it, what Python may refuse: an exponent, half of a surrogate pair, a very long number. */
enum { ABSENT, NOTHING, TRUE, FALSE, INTEGER, DECIMAL, LONG, STRING, ESCAPED, OBJECT, LIST, STRANGE };

typedef struct { const uint8_t *at; int32_t len, kind; } Span;

typedef struct { uint8_t *at; size_t used, room; } Buffer;

/* 0: there is no memory, and the buffer is as before. */
static int reserve(Buffer *buffer, size_t len) {
    if (buffer->room - buffer->used >= len) return 1;
    if (len > SIZE_MAX / 4 || buffer->used > SIZE_MAX / 4) return 0;
    size_t room = (buffer->used + len) * 2 + 4096;
    uint8_t *at = realloc(buffer->at, room);
    if (!at) return 0;
    buffer->at = at;
    buffer->room = room;
    return 1;
}

static int put(Buffer *buffer, const void *at, size_t len) {
    if (!reserve(buffer, len)) return 0;
    if (len) memcpy(buffer->at + buffer->used, at, len);
    buffer->used += len;
    return 1;
}

/* A length in groups of 7 bits, as ClickHouse and Protocol Buffers write it. */
static size_t varint(uint8_t into[10], uint64_t value) {
    size_t size = 0;
    for (; value >= 128; value >>= 7) into[size++] = (uint8_t)(value | 128);
    into[size++] = (uint8_t)value;
    return size;
}

static int put_text(Buffer *buffer, const void *at, size_t len) {
    uint8_t head[10];
    return put(buffer, head, varint(head, len)) && put(buffer, at, len);
}

static int same(const Span *a, const Span *b) {
    return a->len == b->len && (!a->len || !memcmp(a->at, b->at, (size_t)a->len));
}

static int is(const Span *span, const char *text, int32_t len) {
    return span->len == len && !memcmp(span->at, text, (size_t)len);
}

static int is_digit(uint8_t byte) { return byte >= '0' && byte <= '9'; }

/* Whether all is UTF-8, as strictly as Python's decoder: no surrogates, no longer form than needed. */
static int is_utf8(const uint8_t *p, const uint8_t *end) {
    while (p < end) {
        uint64_t word;
        if (end - p >= 8) {
            memcpy(&word, p, 8);
            if (!(word & 0x8080808080808080ULL)) { p += 8; continue; }
        }
        if (*p < 0x80) { p++; continue; }
        int more;
        uint32_t least, code;
        if ((*p & 0xE0) == 0xC0) { more = 1; least = 0x80; code = *p & 0x1F; }
        else if ((*p & 0xF0) == 0xE0) { more = 2; least = 0x800; code = *p & 0x0F; }
        else if ((*p & 0xF8) == 0xF0) { more = 3; least = 0x10000; code = *p & 0x07; }
        else return 0;
        if (end - p <= more) return 0;
        for (int i = 1; i <= more; i++) {
            if ((p[i] & 0xC0) != 0x80) return 0;
            code = code << 6 | (p[i] & 0x3F);
        }
        if (code < least || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return 0;
        p += more + 1;
    }
    return 1;
}

static int32_t characters(const Span *span) {
    int32_t found = 0;
    for (int32_t i = 0; i < span->len; i++) found += (span->at[i] & 0xC0) != 0x80;
    return found;
}

/* Whether a span is a text without escapes of at most so many characters. */
static int is_text(const Span *span, int32_t most) {
    if (span->kind != STRING) return 0;
    return span->len <= most || (span->len <= 4 * most && characters(span) <= most);
}

#endif
