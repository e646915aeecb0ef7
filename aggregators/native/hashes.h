/* Two keyed hashes: blake2b (RFC 7693) of the marks, and SipHash-1-3 of the tables in memory, so that nobody can send
   names that all fall into one slot. */
#ifndef TIDEMARK_HASHES_H
#define TIDEMARK_HASHES_H

#include "bytes.h"

#define KEY_BYTES 32
#define DIGEST_BYTES 12

typedef struct { uint64_t h[8]; } Blake2b;

static const uint64_t IV[8] = {
    0x6a09e667f3bcc908ULL, 0xbb67ae8584caa73bULL, 0x3c6ef372fe94f82bULL, 0xa54ff53a5f1d36f1ULL,
    0x510e527fade682d1ULL, 0x9b05688c2b3e6c1fULL, 0x1f83d9abfb41bd6bULL, 0x5be0cd19137e2179ULL};
static const uint8_t SIGMA[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3}};

#define RIGHT(x, n) (((x) >> (n)) | ((x) << (64 - (n))))
#define LEFT(x, n) (((x) << (n)) | ((x) >> (64 - (n))))
#define G(a, b, c, d, x, y) \
    a += b + (x); d = RIGHT(d ^ a, 32); c += d; b = RIGHT(b ^ c, 24); \
    a += b + (y); d = RIGHT(d ^ a, 16); c += d; b = RIGHT(b ^ c, 63);

static void compress(Blake2b *hash, const uint8_t block[128], uint64_t counted, int last) {
    uint64_t m[16], v[16];
    memcpy(m, block, 128);
    memcpy(v, hash->h, 64);
    memcpy(v + 8, IV, 64);
    v[12] ^= counted;
    if (last) v[14] = ~v[14];
    for (int round = 0; round < 12; round++) {
        const uint8_t *s = SIGMA[round];
        G(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]])
        G(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]])
        G(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]])
        G(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]])
        G(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]])
        G(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]])
        G(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]])
        G(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]])
    }
    for (int i = 0; i < 8; i++) hash->h[i] ^= v[i] ^ v[i + 8];
}

/* The state after the key, with which every digest of that size begins. `person` has up to 8 characters. */
static Blake2b keyed(const uint8_t key[KEY_BYTES], uint64_t digest_bytes, const char *person) {
    Blake2b hash;
    uint8_t block[128] = {0}, personal[8] = {0};
    uint64_t word;
    memcpy(hash.h, IV, 64);
    hash.h[0] ^= 0x01010000 ^ (KEY_BYTES << 8) ^ digest_bytes;
    memcpy(personal, person, strlen(person));
    memcpy(&word, personal, 8);
    hash.h[6] ^= word;
    memcpy(block, key, KEY_BYTES);
    compress(&hash, block, 128, 0);
    return hash;
}

static void digest(const Blake2b *start, const uint8_t *at, size_t len, uint8_t into[DIGEST_BYTES]) {
    Blake2b hash = *start;
    uint64_t counted = 128;
    uint8_t block[128] = {0};
    for (; len > 128; at += 128, len -= 128) compress(&hash, at, counted += 128, 0);
    memcpy(block, at, len);
    compress(&hash, block, counted + len, 1);
    memcpy(into, hash.h, DIGEST_BYTES);
}

#define ROUND(a, b, c, d) \
    a += b; b = LEFT(b, 13) ^ a; a = LEFT(a, 32); c += d; d = LEFT(d, 16) ^ c; \
    a += d; d = LEFT(d, 21) ^ a; c += b; b = LEFT(b, 17) ^ c; c = LEFT(c, 32);

static uint64_t siphash(const uint64_t key[2], const uint8_t *at, size_t len) {
    uint64_t a = key[0] ^ 0x736f6d6570736575ULL, b = key[1] ^ 0x646f72616e646f6dULL;
    uint64_t c = key[0] ^ 0x6c7967656e657261ULL, d = key[1] ^ 0x7465646279746573ULL;
    uint64_t word, last = (uint64_t)len << 56;
    for (; len >= 8; at += 8, len -= 8) {
        memcpy(&word, at, 8);
        d ^= word;
        ROUND(a, b, c, d)
        a ^= word;
    }
    word = 0;
    if (len) memcpy(&word, at, len);
    last |= word;
    d ^= last;
    ROUND(a, b, c, d)
    a ^= last;
    c ^= 0xff;
    ROUND(a, b, c, d)
    ROUND(a, b, c, d)
    ROUND(a, b, c, d)
    return a ^ b ^ c ^ d;
}

#endif
