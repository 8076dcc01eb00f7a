-- INET4, INET6 and UUID, which look like BINARY in the binlog, and JSON as text.
CREATE TABLE addresses (id INT PRIMARY KEY, a4 INET4, a6 INET6, u UUID, j JSON);
INSERT INTO addresses VALUES (1, '192.0.2.1', '2001:db8::1', '123e4567-e89b-12d3-a456-426655440000', '{"a": 1.0}'),
  (2, '0.0.0.0', '::', '00000000-0000-0000-0000-000000000000', '[]'), (3, NULL, NULL, NULL, NULL);
