// Addresses as text: what is read, what it is written as, and what is refused.
#include "policy/address.hpp"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

namespace holdfast {
namespace {

struct Spelling {
  const char* text;
  const char* canonical;
};

TEST(Address, ReadsAndWritesCanonically) {
  const Spelling table[] = {
      {"0.0.0.0", "0.0.0.0"},
      {"10.0.0.2", "10.0.0.2"},
      {"255.255.255.255", "255.255.255.255"},
      {"::", "::"},
      {"::1", "::1"},
      {"1::", "1::"},
      {"fd00:0001::0002", "fd00:1::2"},
      {"FD00::ABCD", "fd00::abcd"},
      {"1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"},
      {"0:0:0:0:0:0:0:1", "::1"},
      {"1:0:0:2:0:0:0:3", "1:0:0:2::3"},       // RFC 5952 4.2.3: the longest run
      {"1:0:0:2:3:0:0:4", "1::2:3:0:0:4"},     // the first of equals
      {"1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"},  // 4.2.2: not for a single group
      {"1::2:3:4:5:6:7", "1:0:2:3:4:5:6:7"},
      {"1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"},
      {"::2:3:4:5:6:7:8", "0:2:3:4:5:6:7:8"},
      {"64:ff9b::192.0.2.33", "64:ff9b::c000:221"},
      {"::1.2.3.4", "::102:304"},
      {"::ffff:0:1.2.3.4", "::ffff:0:102:304"},  // not the mapped range
  };
  for (const Spelling& row : table) {
    Result<Address> address = parse_address(row.text);
    ASSERT_TRUE(address) << row.text << ": " << address.error().text();
    EXPECT_EQ(format_address(*address), row.canonical) << row.text;
    EXPECT_EQ(parse_address(row.canonical).value(), *address) << row.text;
  }
}

TEST(Address, Refuses) {
  const char* table[] = {
      "",
      " ",
      "10",
      "10.0.0",
      "10.0.0.",
      ".10.0.0.1",
      "10..0.1",
      "10.0.0.1.",
      "10.0.0.1.2",
      "10.0.0.256",
      "10.0.0.-1",
      "10.0.0.+1",
      "10.0.0.01",
      "010.0.0.1",
      "00.0.0.0",
      "0x0a.0.0.1",
      "10.0.0.1 ",
      " 10.0.0.1",
      "10.0.0.1/32",
      "10.0.0.1:80",
      "10.0.0.a",
      "167772161",
      "4294967296.0.0.1",
      "10.0.0.1%eth0",
      ":",
      ":::",
      "1",
      "1:",
      ":1",
      "1:2:3:4:5:6:7",
      "1:2:3:4:5:6:7:8:9",
      "1:2:3:4:5:6:7:8::",
      "::1:2:3:4:5:6:7:8",
      "1::2::3",
      "::1::",
      "12345::",
      "g::",
      "fd00:::1",
      "fe80::1%1",
      "[::1]",
      "::1/128",
      "::1 ",
      "1:2:3:4:5:6:7:",
      "::ffff:10.0.0.2",
      "::FFFF:0a00:0002",
      "0:0:0:0:0:ffff:1.2.3.4",
      "::1.2.3",
      "::1.2.3.04",
      "1.2.3.4::",
      "::1.2.3.4:5",
      "1:2:3:4:5:6:7:1.2.3.4",
      "1:2:3:4:5:1.2.3.4",
      "-1::",
      "0x1::",
      "\xd9\xa1.1.1.1",
  };
  for (const char* text : table) {
    Result<Address> address = parse_address(text);
    EXPECT_FALSE(address) << text;
    if (address) continue;
    EXPECT_EQ(address.error().kind, ErrorKind::invalid);
    EXPECT_FALSE(address.error().next_step.empty()) << text;
  }
  EXPECT_FALSE(parse_address(std::string_view("10.0.0.1\0", 9)));
  EXPECT_FALSE(parse_address(std::string(100'000, ':')));
}

TEST(Address, MappedTextIsToldHowToBeWritten) {
  EXPECT_EQ(parse_address("::ffff:10.0.0.2").error().text(),
            "\"::ffff:10.0.0.2\" is an IPv4 address dressed as IPv6; write 10.0.0.2");
}

TEST(Address, EveryAddressSurvivesItsText) {
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {
    Address address;
    // Many zeros, so that '::' is met everywhere.
    for (uint8_t& byte : address.bytes)
      byte = random() % 4 == 0 ? static_cast<uint8_t>(random()) : 0;
    if (i % 4 == 0) {
      std::fill_n(address.bytes.begin(), 10, uint8_t{0});
      address.bytes[10] = address.bytes[11] = 0xff;
    }
    std::string text = format_address(address);
    EXPECT_EQ(parse_address(text).value(), address) << text;
    EXPECT_EQ(text.find(':') == std::string::npos, address.is_v4()) << text;
  }
}

TEST(Prefix, ReadsAndWrites) {
  const Spelling table[] = {
      {"10.0.0.0/8", "10.0.0.0/8"},   {"0.0.0.0/0", "0.0.0.0/0"},
      {"10.0.0.2", "10.0.0.2/32"},    {"10.0.0.2/32", "10.0.0.2/32"},
      {"fd00::/8", "fd00::/8"},       {"::/0", "::/0"},
      {"fd00::1", "fd00::1/128"},     {"fd00:0::/127", "fd00::/127"},
      {"10.1.4.0/28", "10.1.4.0/28"},
  };
  for (const Spelling& row : table) {
    Result<Prefix> prefix = parse_prefix(row.text);
    ASSERT_TRUE(prefix) << row.text << ": " << prefix.error().text();
    EXPECT_EQ(format_prefix(*prefix), row.canonical);
    EXPECT_EQ(parse_prefix(row.canonical).value(), *prefix);
  }
  EXPECT_EQ(parse_prefix("10.0.0.0/8")->bits, 104);
}

TEST(Prefix, Refuses) {
  const char* table[] = {"10.0.0.0/",
                         "10.0.0.0/33",
                         "10.0.0.0/08",
                         "10.0.0.0/-1",
                         "10.0.0.0/+8",
                         "10.0.0.0/8/8",
                         "10.0.0.0/ 8",
                         "/8",
                         "10/8",
                         "10.0.0.1/8",
                         "fd00::/129",
                         "fd00::1/64",
                         "fd00::/064",
                         "::ffff:10.0.0.0/104",
                         "::1/0",
                         "10.0.0.0/0x8",
                         "10.0.0.0/255.0.0.0",
                         "fd00::/99999999999"};
  for (const char* text : table) EXPECT_FALSE(parse_prefix(text)) << text;
  EXPECT_EQ(
      parse_prefix("10.1.2.3/8").error().text(),
      "\"10.1.2.3/8\" has bits set behind its length; write 10.0.0.0/8, or 10.1.2.3 if one address "
      "is meant");
}

TEST(Prefix, ContainsWithinItsFamilyOnly) {
  struct Row {
    const char* prefix;
    const char* address;
    bool contains;
  };
  const Row table[] = {
      {"10.0.0.0/8", "10.255.255.255", true},
      {"10.0.0.0/8", "11.0.0.0", false},
      {"10.0.0.0/8", "9.255.255.255", false},
      {"0.0.0.0/0", "192.0.2.1", true},
      {"0.0.0.0/0", "::1", false},
      {"::/0", "192.0.2.1", false},
      {"::/0", "fd00::1", true},
      {"fd00::/9", "fd7f::1", true},
      {"fd00::/9", "fd80::1", false},
      {"fd00::1", "fd00::1", true},
      {"fd00::1", "fd00::2", false},
      {"10.1.4.0/28", "10.1.4.15", true},
      {"10.1.4.0/28", "10.1.4.16", false},
  };
  for (const Row& row : table) {
    EXPECT_EQ(parse_prefix(row.prefix)->contains(*parse_address(row.address)), row.contains)
        << row.prefix << " " << row.address;
  }
}

TEST(Prefix, LastAddress) {
  EXPECT_EQ(format_address(last_address(*parse_prefix("10.0.0.0/8"))), "10.255.255.255");
  EXPECT_EQ(format_address(last_address(*parse_prefix("10.1.4.0/28"))), "10.1.4.15");
  EXPECT_EQ(format_address(last_address(*parse_prefix("fd00::/127"))), "fd00::1");
  EXPECT_EQ(format_address(next_address(*parse_address("10.0.255.255"))), "10.1.0.0");
}

TEST(Mac, ReadsAndRefuses) {
  EXPECT_EQ(format_mac(*parse_mac("02:00:00:00:00:0A")), "02:00:00:00:00:0a");
  EXPECT_EQ(format_mac(*parse_mac("ff:ff:ff:ff:ff:ff")), "ff:ff:ff:ff:ff:ff");
  for (const char* text :
       {"", "02:00:00:00:00", "02:00:00:00:00:0", "02:00:00:00:00:0a:", "2:0:0:0:0:a",
        "02-00-00-00-00-0a", "0200.0000.000a", "02:00:00:00:00:0g", "02:00:00:00:00 0a",
        "02:00:00:00:00:0a ", "020:0:00:00:00:0a"}) {
    EXPECT_FALSE(parse_mac(text)) << text;
  }
}

TEST(AddressPort, ReadsAndRefuses) {
  for (const char* text : {"10.0.0.2:443", "[::1]:443", "[fd00::2]:65535", "0.0.0.0:1"}) {
    Result<AddressPort> value = parse_address_port(text);
    ASSERT_TRUE(value) << text;
    EXPECT_EQ(format_address_port(*value), text);
  }
  for (const char* text : {"",
                           ":",
                           ":443",
                           "10.0.0.2",
                           "10.0.0.2:",
                           "10.0.0.2:0",
                           "10.0.0.2:65536",
                           "10.0.0.2:0443",
                           "10.0.0.2:+1",
                           "[10.0.0.2]:443",
                           "::1:443",
                           "[::1]",
                           "[::1]:",
                           "[::1]443",
                           "[::1:443",
                           "::1]:443",
                           "[::1%lo]:443",
                           "[::ffff:1.2.3.4]:443",
                           "host:443",
                           "10.0.0.2 :443",
                           "10.0.0.2: 443",
                           "[]:443",
                           "[[::1]]:443"}) {
    EXPECT_FALSE(parse_address_port(text)) << text;
  }
}

}  // namespace
}  // namespace holdfast
