-- Prepared transactions that end otherwise than they began, between others.
CREATE TABLE t (id INT PRIMARY KEY, n INT);
INSERT INTO t VALUES (1, 1), (2, 2);
XA START 'kept', 'branch', 7;
UPDATE t SET n = 10 WHERE id = 1;
INSERT INTO t VALUES (3, 3);
XA END 'kept', 'branch', 7;
XA PREPARE 'kept', 'branch', 7;
-- connect two
INSERT INTO t VALUES (4, 4);
XA START 'dropped';
INSERT INTO t VALUES (5, 5);
XA END 'dropped';
XA PREPARE 'dropped';
-- connect one
XA COMMIT 'kept', 'branch', 7;
-- connect two
XA ROLLBACK 'dropped';
XA START 'one phase';
DELETE FROM t WHERE id = 2;
XA END 'one phase';
XA COMMIT 'one phase' ONE PHASE;
