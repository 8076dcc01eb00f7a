-- What only MySQL has: JSON in binary, with opaque values, and VECTOR.
CREATE TABLE documents (id INT PRIMARY KEY, j JSON);
INSERT INTO documents VALUES (1, '{"b": [1, -1, 1.5, true, null, "x"], "a": {"deep": {"deeper": []}}, "": ""}'),
  (2, JSON_OBJECT('dec', CAST(1.50 AS DECIMAL(10,2)), 'time', CAST('-01:02:03.5' AS TIME(6)),
   'date', DATE '2024-02-29', 'datetime', TIMESTAMP '2024-02-29 01:02:03.000004')),
  (3, '18446744073709551615'), (4, '"text"'), (5, 'null'), (6, NULL),
  (7, JSON_ARRAY(REPEAT('long', 1000), -32769, 65536, -2147483649)),
  (8, JSON_OBJECT('ключ', 'значение', 'blob', CAST('a' AS BINARY)));
UPDATE documents SET j = JSON_ARRAY_APPEND(j, '$', j) WHERE id = 3;
CREATE TABLE vectors (id INT PRIMARY KEY, v VECTOR(3));
INSERT INTO vectors VALUES (1, TO_VECTOR('[1, -2.5, 3e10]')), (2, NULL);
